"""Training with the heads of every task: resumed, checkpointed, on padded batches, in a new process."""

import pytest
import torch
from peft import get_peft_model
from tasks import AUTO, CASES, each_task, inputs_of, load, outputs_in_a_new_process
from tiny import METHODS, make_padded_inputs, randomize, trainable
from transformers import Trainer, TrainingArguments


SOME = [case for case in CASES if case[0] in ("wav2vec2", "wavlm")]
some_tasks = pytest.mark.parametrize("backbone, task", SOME)


def adapted(backbone, task, method="ipet"):
    torch.manual_seed(0)
    return randomize(get_peft_model(load(backbone, task), METHODS[method]()), std=0.02)


class Rows(torch.utils.data.Dataset):
    """The samples of one batch, again and again."""

    def __init__(self, backbone, task):
        self.batch = inputs_of(backbone, task)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {name: value[index % 2] for name, value in self.batch.items()}


def trainer(backbone, task, folder):
    options = {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 2}
    arguments = TrainingArguments(str(folder), report_to=[], disable_tqdm=True, use_cpu=True, seed=0, **options)
    return Trainer(adapted(backbone, task), arguments, train_dataset=Rows(backbone, task))


@some_tasks
def test_a_resumed_training_ends_with_the_weights_of_a_whole_one(backbone, task, tmp_path):
    whole, resumed = trainer(backbone, task, tmp_path / "whole"), trainer(backbone, task, tmp_path / "resumed")
    start = {name: value.clone() for name, value in trainable(whole.model).items()}
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    expected, actual = trainable(whole.model), trainable(resumed.model)
    assert expected.keys() == actual.keys() == start.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value)
    heads = [name for name in start if "modules_to_save" in name]
    assert heads and all(not torch.equal(expected[name], start[name]) for name in heads)


@some_tasks
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(backbone, task, use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = adapted(backbone, task).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model(**inputs_of(backbone, task)).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in trainable(model).items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@each_task
@pytest.mark.parametrize("method", ["ipet", "time_freq_conv"])
def test_clips_in_a_padded_batch_give_what_they_give_alone_where_the_base_does(backbone, task, method):
    batch, alone = make_padded_inputs(backbone)
    base, model = load(backbone, task).eval(), adapted(backbone, task, method).eval()
    if not _is_same(base, batch, alone, task):
        pytest.skip("padding changes the outputs of the base model too")
    assert _is_same(model, batch, alone, task)


@torch.no_grad()
def _is_same(model, batch, alone, task):
    together = model(**batch).logits
    single = [model(**inputs).logits[0] for inputs in alone]
    if task != "ForXVector":
        together = [row[: len(one)] for row, one in zip(together, single, strict=True)]
    return all(torch.allclose(row, one, atol=1e-4) for row, one in zip(together, single, strict=True))


@pytest.mark.parametrize("backbone, task", [case for case in SOME if case[0] == "wav2vec2"])
def test_a_new_process_gives_the_same_outputs(backbone, task, tmp_path):
    model = adapted(backbone, task).eval()
    model.save_pretrained(tmp_path)
    inputs = {name: value for name, value in inputs_of(backbone, task).items() if name != "labels"}
    with torch.no_grad():
        expected = model(**inputs).logits
    torch.testing.assert_close(outputs_in_a_new_process(AUTO[task], tmp_path, inputs), expected)
