"""The Hugging Face Trainer on adapted models: train, resume, best checkpoint, predict."""

import os
import shutil

import numpy as np
import pytest
import torch
from clips import Clips
from killing import die_at
from peft import PeftModel, get_peft_model
from tiny import BACKBONES, METHODS, each_typical_backbone, make_inputs, randomize, trainable
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from peft_audio import last_complete_checkpoint


def make_trainer(backbone, folder, method="ipet", steps=6, **options):
    torch.manual_seed(0)
    model = get_peft_model(BACKBONES[backbone](), METHODS[method]())
    settings = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
    }
    arguments = TrainingArguments(**{**settings, **options})
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("step", [2, 10, 20, 30])
def test_killed_while_it_writes_a_checkpoint_it_goes_on_from_the_one_before(step, tmp_path):
    whole = make_trainer("ast", tmp_path / "whole")
    whole.train()
    folder = tmp_path / "killed"
    killed = die_at(step, lambda: make_trainer("ast", folder).train(), folder / "checkpoint-6")
    assert killed and (folder / "checkpoint-6").exists()
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-3")
    resumed = make_trainer("ast", folder)
    resumed.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    expected, actual = adapter_state(whole.model), adapter_state(resumed.model)
    assert all(torch.equal(value, actual[name]) for name, value in expected.items())
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-6")


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"global_step": 5}'])
def test_checkpoints_without_a_readable_state_are_passed_over(content, tmp_path):
    assert last_complete_checkpoint(tmp_path / "nowhere") is None
    for name in ("checkpoint-12", "checkpoint-7", "checkpoint-old", "checkpoint-100"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-300").write_text("a file")
    shutil.copytree(tmp_path / "checkpoint-7", tmp_path / "checkpoint-9")
    (tmp_path / "checkpoint-9" / "trainer_state.json").write_text('{"global_step": 9}')
    if content is not None:
        (tmp_path / "checkpoint-100" / "trainer_state.json").write_text(content)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")


@each_typical_backbone
def test_accumulating_gradients_gives_the_step_of_the_larger_batch(backbone, tmp_path):
    def run(**options):
        trainer = make_trainer(backbone, tmp_path / str(len(options)), "joint", steps=3, **options)
        trainer.train()
        return adapter_state(trainer.model)

    whole, parts = run(), run(gradient_accumulation_steps=2, per_device_train_batch_size=2)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-4, rtol=1e-3)


@each_typical_backbone
@pytest.mark.parametrize("method", ["ipet", "time_freq_conv"])
def test_bf16_training_learns(backbone, method, tmp_path):
    trainer = make_trainer(backbone, tmp_path, method, steps=20, bf16=True)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * before
    assert all(value.dtype == torch.float32 for value in adapter_state(trainer.model).values())


@each_typical_backbone
@pytest.mark.parametrize("method", METHODS)
def test_fp16_autocast_with_a_scaled_loss_gives_the_gradients_of_full_precision(backbone, method):
    """What the Trainer does for `fp16=True`, which it refuses without a GPU."""
    model = randomize(get_peft_model(BACKBONES[backbone](), METHODS[method]())).train()
    batch = {**make_inputs(backbone), "labels": torch.tensor([0, 3])}
    model(**batch).loss.backward()
    expected = {name: parameter.grad for name, parameter in trainable(model).items()}
    model.zero_grad()
    optimizer = torch.optim.SGD(trainable(model).values())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with torch.autocast("cpu", dtype=torch.float16):
        output = model(**batch)
    scaler.scale(output.loss).backward()
    scaler.unscale_(optimizer)
    assert output.logits.dtype == torch.float16
    for name, parameter in trainable(model).items():
        error = float((parameter.grad - expected[name]).norm() / expected[name].norm())
        assert error < 0.1, (name, error)  # a few activations near zero fall on the other side


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the Trainer takes fp16 on GPUs only")
@pytest.mark.parametrize("backbone", ["ast", "wav2vec2"])
def test_fp16_training_learns(backbone, tmp_path):
    trainer = make_trainer(backbone, tmp_path, steps=20, fp16=True, use_cpu=False)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * before


@pytest.mark.parametrize("backbone", ["ast", "wav2vec2"])
def test_compiled_training_gives_the_same_weights(backbone, tmp_path):
    def run(**options):
        torch.compiler.reset()
        trainer = make_trainer(backbone, tmp_path / str(len(options)), steps=3, **options)
        trainer.train()
        return adapter_state(trainer.model)

    plain, compiled = run(), run(torch_compile=True, torch_compile_backend="aot_eager")
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-4, rtol=1e-3)


def test_early_stopping(tmp_path):
    trainer = make_trainer(
        "ast", tmp_path, steps=60, load_best_model_at_end=True, metric_for_best_model="eval_loss",
        greater_is_better=False,
    )  # fmt: skip
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=100.0))
    trainer.train()
    assert trainer.state.global_step == 6


def test_labels_are_found_without_being_named(tmp_path):
    trainer = make_trainer("wav2vec2", tmp_path)
    assert trainer.label_names == ["labels"] and trainer.can_return_loss is False
    assert {"eval_loss", "eval_accuracy"} <= set(trainer.evaluate())
