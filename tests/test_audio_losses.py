"""The loss against its formula, and against the weights that the Trainer reaches with and without accumulation."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from peft_audio.trainer import classification_loss


NAN = float("nan")
CLIPS, LABELS = 12, 3


def logits_of(seed=0):
    return torch.randn(CLIPS, LABELS, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def log_softmax(logits):
    logits = logits.detach().double().numpy()
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def binary_terms(logits, targets):
    """-(t ln p + (1 - t) ln(1 - p)), with p the sigmoid of the logits."""
    probabilities = 1 / (1 + np.exp(-logits.detach().double().numpy()))
    return -(targets * np.log(probabilities) + (1 - targets) * np.log(1 - probabilities))


def indices():
    return torch.arange(CLIPS) % LABELS


def multi_hot():
    return (torch.arange(CLIPS * LABELS).reshape(CLIPS, LABELS) % 5 < 2).float()


def soft():
    return torch.softmax(2 * logits_of(seed=1).detach(), dim=1)


def with_unknown(targets, mark):
    targets = targets.clone()
    targets.flatten()[[0, 4, 5, 7]] = mark
    return targets


def test_class_indices_give_the_mean_cross_entropy():
    logits = logits_of()
    expected = -log_softmax(logits)[np.arange(CLIPS), indices()].mean()
    assert classification_loss({"logits": logits}, indices()).item() == pytest.approx(expected, rel=1e-5)


def test_soft_targets_give_the_mean_cross_entropy():
    logits = logits_of()
    expected = -(soft().numpy() * log_softmax(logits)).sum(axis=1).mean()
    loss = classification_loss({"logits": logits}, soft(), loss="cross_entropy")
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_label_smoothing_is_the_cross_entropy_of_smoothed_targets():
    smoothed = 0.9 * np.eye(LABELS)[indices()] + 0.1 / LABELS
    expected = -(smoothed * log_softmax(logits_of())).sum(axis=1).mean()
    loss = classification_loss({"logits": logits_of()}, indices(), label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", [multi_hot, soft])
def test_vectors_give_the_mean_binary_cross_entropy(make):
    expected = binary_terms(logits_of(), make().numpy()).mean()
    assert classification_loss({"logits": logits_of()}, make()).item() == pytest.approx(expected, rel=1e-5)
    assert classification_loss({"logits": logits_of()}, make().double()).item() == pytest.approx(expected, rel=1e-5)


def test_class_indices_become_one_hot_for_binary_cross_entropy():
    expected = binary_terms(logits_of(), np.eye(LABELS)[indices()]).mean()
    loss = classification_loss({"logits": logits_of()}, indices(), loss="binary_cross_entropy")
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mark", [NAN, -100.0])
def test_unknown_targets_count_neither_in_the_loss_nor_in_the_gradient(mark):
    logits, labels = logits_of(), with_unknown(multi_hot(), mark)
    known = np.ones(CLIPS * LABELS, dtype=bool)
    known[[0, 4, 5, 7]] = False
    expected = binary_terms(logits, multi_hot().numpy()).flatten()[known].mean()
    loss = classification_loss({"logits": logits}, labels)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert np.array_equal(logits.grad.flatten().numpy() != 0, known)


def test_clips_without_a_label_are_left_out():
    labels = indices()
    labels[:4] = -100
    expected = -log_softmax(logits_of())[np.arange(4, CLIPS), labels[4:]].mean()
    assert classification_loss({"logits": logits_of()}, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("labels", [torch.full((CLIPS, LABELS), NAN), torch.full((CLIPS,), -100)])
@pytest.mark.parametrize("num_items", [None, torch.tensor(0)])
def test_a_batch_of_unknown_targets_has_no_loss_and_no_gradient(labels, num_items):
    logits = logits_of()
    loss = classification_loss({"logits": logits}, labels, num_items)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_half_precision_logits_are_computed_with_in_full():
    logits = 20 * logits_of()
    loss = classification_loss({"logits": logits.bfloat16()}, indices())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-log_softmax(logits.bfloat16())[np.arange(CLIPS), indices()].mean(), rel=1e-5)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, LABELS)

    def forward(self, inputs, labels=None):
        return {"logits": self.linear(inputs)}


def train(folder, labels, batch_size, loss):
    """The weights after two epochs of plain gradient descent, twelve clips a step."""
    inputs = torch.randn(CLIPS, 4, generator=torch.Generator().manual_seed(3))
    model = Linear()
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=CLIPS // batch_size,
        num_train_epochs=2,
        max_grad_norm=0.0,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=[{"inputs": row, "labels": label} for row, label in zip(inputs, labels)],
        compute_loss_func=functools.partial(classification_loss, loss=loss),
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)),
    )
    trainer.train()
    return inputs, model.linear


@pytest.mark.parametrize(
    "make, loss",
    [
        (indices, "cross_entropy"),
        (lambda: with_unknown(indices(), -100), "cross_entropy"),
        (soft, "cross_entropy"),
        (indices, "binary_cross_entropy"),
        (lambda: with_unknown(indices(), -100), "binary_cross_entropy"),
        (lambda: with_unknown(multi_hot(), -100), "binary_cross_entropy"),
    ],
)
def test_accumulated_batches_train_as_one_step_of_the_mean_loss_does(tmp_path, make, loss):
    inputs, accumulated = train(tmp_path, make(), batch_size=4, loss=loss)
    expected = Linear()
    for _ in range(2):
        expected.zero_grad()
        classification_loss(expected(inputs), make(), loss=loss).backward()
        with torch.no_grad():
            for parameter in expected.parameters():
                parameter -= parameter.grad
    assert torch.allclose(accumulated.weight, expected.linear.weight, atol=1e-6)


def test_with_nan_each_batch_counts_by_its_share_of_the_clips():
    logits, labels = logits_of(), with_unknown(multi_hot(), NAN)
    losses = [
        classification_loss({"logits": part}, target, torch.tensor(CLIPS * LABELS)).item()
        for part, target in zip(logits.split(8), labels.split(8))
    ]
    means = [
        classification_loss({"logits": part}, target).item() for part, target in zip(logits.split(8), labels.split(8))
    ]
    assert losses == pytest.approx([means[0] * 8 / 12, means[1] * 4 / 12])


@pytest.mark.parametrize(
    "labels, options, message",
    [
        (multi_hot(), {"loss": "cross_entropy"}, "those of clip 0 .* sum to 2"),
        (with_unknown(soft(), NAN), {"loss": "cross_entropy"}, "those of clip 0 .* sum to nan"),
        (torch.tensor([[1.5, -0.5, 0.0]] * CLIPS), {"loss": "cross_entropy"}, "are 0 or more"),
        (indices(), {"loss": "hinge"}, "cross_entropy or binary_cross_entropy, got 'hinge'"),
        (multi_hot(), {"label_smoothing": 0.1}, "label_smoothing=0.1 is for cross_entropy"),
        (multi_hot()[:, :2], {}, r"shape \(12, 3\), got torch.float32 of shape \(12, 2\)"),
        (indices().float(), {}, r"class indices \(integers\)"),
    ],
)
def test_targets_and_options_that_do_not_fit_are_refused(labels, options, message):
    with pytest.raises(ValueError, match=message):
        classification_loss({"logits": logits_of()}, labels, **options)
