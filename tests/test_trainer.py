"""The Hugging Face Trainer on adapted models: train, resume, best checkpoint, predict."""

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny import BACKBONES, METHODS, each_typical_backbone, make_inputs
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments


class Clips(Dataset):
    """Twelve clips whose label is told by their level."""

    def __init__(self, backbone):
        inputs = make_inputs(backbone, batch_size=12)["input_values"]
        self.labels = torch.arange(12) % 2
        self.inputs = inputs + 2.0 * self.labels.reshape(-1, *[1] * (inputs.dim() - 1))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"input_values": self.inputs[index], "labels": self.labels[index]}


def make_trainer(backbone, folder, method="ipet", steps=6, **options):
    torch.manual_seed(0)
    model = get_peft_model(BACKBONES[backbone](), METHODS[method]())
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        **options,
    )
    clips = Clips(backbone)

    def accuracy(prediction):
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    return Trainer(model=model, args=arguments, train_dataset=clips, eval_dataset=clips, compute_metrics=accuracy)


def adapter_state(model):
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


@each_typical_backbone
@pytest.mark.parametrize("method", ["ipet", "joint"])
def test_resuming_gives_the_weights_of_an_uninterrupted_run(backbone, method, tmp_path):
    whole = make_trainer(backbone, tmp_path / "whole", method)
    start = adapter_state(whole.model)
    whole.train()
    resumed = make_trainer(backbone, tmp_path / "resumed", method)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    expected, actual = adapter_state(whole.model), adapter_state(resumed.model)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(value, actual[name]) for name, value in expected.items())
    assert all(not torch.equal(value, start[name]) for name, value in expected.items())


@each_typical_backbone
def test_best_model_is_loaded_at_the_end(backbone, tmp_path):
    trainer = make_trainer(
        backbone, tmp_path, load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=False
    )
    losses = iter([0.5, 1.0])  # the first checkpoint is the best one, whatever training does
    evaluate = trainer.evaluation_loop

    def evaluation_loop(*args, **kwargs):
        output = evaluate(*args, **kwargs)
        output.metrics["eval_loss"] = next(losses)
        return output

    trainer.evaluation_loop = evaluation_loop
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-3")
    best = PeftModel.from_pretrained(BACKBONES[backbone](), tmp_path / "checkpoint-3", is_trainable=True)
    last = PeftModel.from_pretrained(BACKBONES[backbone](), tmp_path / "checkpoint-6", is_trainable=True)
    loaded = adapter_state(trainer.model)
    assert all(torch.equal(value, loaded[name]) for name, value in adapter_state(best).items())
    assert not all(torch.equal(value, loaded[name]) for name, value in adapter_state(last).items())


@each_typical_backbone
def test_training_learns_and_predicts(backbone, tmp_path):
    trainer = make_trainer(backbone, tmp_path, steps=30)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"] and after["eval_accuracy"] > 0.9
    prediction = trainer.predict(Clips(backbone))
    assert prediction.predictions.shape == (12, 5) and np.array_equal(prediction.label_ids, np.arange(12) % 2)


@each_typical_backbone
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_through_the_trainer(backbone, use_reentrant, tmp_path):
    def run(folder, **options):
        trainer = make_trainer(backbone, tmp_path / folder, "joint", steps=3, **options)
        trainer.train()
        return adapter_state(trainer.model)

    plain = run("plain")
    kwargs = {"gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    checkpointed = run("checkpointed", gradient_checkpointing=True, **kwargs)
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, atol=1e-4, rtol=1e-3)
