"""The average of weights, in runs of the Trainer: against the weights that another callback writes down."""

import contextlib
import functools
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from clips import Clips
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import BACKBONES, METHODS
from training import weight_averaging
from training.weight_averaging import FILE_NAME, WeightAveraging, trained_tensors
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME


class Recorder(TrainerCallback):
    """The weights at the end of each epoch; stops training as if it was killed, in step `die_after`."""

    def __init__(self, die_after=None):
        self.epochs, self.die_after = {}, die_after

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.die_after:
            raise KeyboardInterrupt

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        self.epochs[round(state.epoch)] = copies(model)


def copies(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def make_trainer(folder, averaging, method="ipet", die_after=None, **options):
    """Three steps an epoch, four epochs, a checkpoint after each."""
    torch.manual_seed(0)
    # The Trainer of transformers 5.23 saves a whole AST by other names than it loads, so it cannot resume one.
    backbone = "wav2vec2" if method == "full" else "ast"
    model = BACKBONES[backbone](num_hidden_layers=1)
    model = get_peft_model(model, METHODS[method]()) if method != "full" else model
    settings = {
        "output_dir": str(folder),
        "num_train_epochs": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_strategy": "epoch",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    recorder = Recorder(die_after)
    callbacks = [*([averaging] if averaging else []), recorder]
    args = TrainingArguments(**settings | options)
    clips = Clips(backbone)
    return Trainer(model=model, args=args, train_dataset=clips, eval_dataset=clips, callbacks=callbacks), recorder


def mean_of(weights, epochs):
    return {name: torch.stack([weights[epoch][name] for epoch in epochs]).mean(dim=0) for name in weights[1]}


def agree(first, second, atol=1e-6):
    return first.keys() == second.keys() and all(
        torch.allclose(first[name], second[name], atol=atol) for name in first
    )


@pytest.fixture(scope="module")
def weights_of(tmp_path_factory):
    """By method, the weights at the end of each epoch of a run without averaging."""

    @functools.cache
    def run(method):
        trainer, recorder = make_trainer(tmp_path_factory.mktemp(method), None, method, save_strategy="no")
        trainer.train()
        return recorder.epochs

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that averaged epochs 2 to 4, its adapter in the folder "out"."""
    folder = tmp_path_factory.mktemp("finished")
    trainer, _ = make_trainer(folder, WeightAveraging(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainerState, "save_to_json", save_to_json)
        trainer.train()
    trainer.save_model(folder / "out")
    return folder


def save_to_json(state, path, save=TrainerState.save_to_json):
    """Writes the file that makes a checkpoint complete, and beside it which files were there before."""
    Path(path).with_name("before.txt").write_text("\n".join(os.listdir(os.path.dirname(path))))
    save(state, path)


@pytest.mark.parametrize(
    "method, first, last, epochs",
    [
        ("ipet", 2, 3, (2, 3)),
        ("ipet", 2, None, (2, 3, 4)),
        ("ipet", 4, 4, (4,)),
        ("conformer", 1, 3, (1, 2, 3)),
        ("full", 2, 3, (2, 3)),
    ],
)
def test_after_training_the_model_is_the_mean_over_the_epochs(tmp_path, weights_of, method, first, last, epochs):
    trainer, _ = make_trainer(tmp_path, WeightAveraging(first, last), method, save_strategy="no")
    trainer.train()
    result = copies(trainer.model)
    assert agree(result, mean_of(weights_of(method), epochs))
    assert agree(result, weights_of(method)[4], atol=1e-4) == (epochs == (4,))


def test_the_running_statistics_of_batch_norms_that_train_are_averaged_too():
    model = get_peft_model(BACKBONES["ast"](num_hidden_layers=1), METHODS["conformer"]())
    names = set(trained_tensors(model))
    assert sum(name.endswith("running_var") for name in names) == 2  # one adapter at each of two sites
    assert not any(name.endswith("num_batches_tracked") for name in names)
    model.requires_grad_(False)
    assert trained_tensors(model) == {}


def test_the_saved_adapter_is_the_average_and_checkpoints_are_not(finished, weights_of):
    for folder, expected in (
        ("out", mean_of(weights_of("ipet"), (2, 3, 4))),
        ("checkpoint-12", weights_of("ipet")[4]),
    ):
        base = BACKBONES["ast"](num_hidden_layers=1)
        assert agree(copies(PeftModel.from_pretrained(base, finished / folder)), expected)


def test_a_checkpoint_that_counts_as_complete_has_its_average(finished):
    found = {step: (finished / f"checkpoint-{step}" / "before.txt").read_text().split() for step in (3, 6, 9, 12)}
    assert all("adapter_model.safetensors" in files and TRAINER_STATE_NAME not in files for files in found.values())
    assert [FILE_NAME in files for files in found.values()] == [False, True, True, True]


@pytest.mark.parametrize(
    "method, save, checkpoint",
    [
        ("ipet", {}, 9),
        ("ipet", {}, 12),  # nothing is left to train
        ("ipet", {"save_strategy": "steps", "save_steps": 2}, 8),  # within an epoch
        ("ipet", {"save_strategy": "steps", "save_steps": 3}, 9),  # at its last step, before on_epoch_end
        ("conformer", {}, 9),
        ("full", {}, 9),
    ],
)
def test_a_resumed_run_ends_with_the_average_of_an_uninterrupted_one(tmp_path, weights_of, method, save, checkpoint):
    killed, _ = make_trainer(tmp_path, WeightAveraging(2, 4), method, checkpoint + 1, **save)
    with pytest.raises(KeyboardInterrupt) if checkpoint < 12 else contextlib.nullcontext():
        killed.train()
    resumed, _ = make_trainer(tmp_path, WeightAveraging(2, 4), method, **save)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
    assert agree(copies(resumed.model), mean_of(weights_of(method), (2, 3, 4)))


def test_averaging_can_begin_in_a_run_that_is_resumed(tmp_path, weights_of):
    before, _ = make_trainer(tmp_path, None, die_after=4)
    with pytest.raises(KeyboardInterrupt):
        before.train()
    resumed, _ = make_trainer(tmp_path, WeightAveraging(3))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert agree(copies(resumed.model), mean_of(weights_of("ipet"), (3, 4)))
    assert (tmp_path / "checkpoint-12" / FILE_NAME).is_file()


def test_restoring_callbacks_from_the_checkpoint_keeps_the_epochs(finished, tmp_path, weights_of):
    shutil.copytree(finished / "checkpoint-12", tmp_path / "checkpoint-12")
    resumed, _ = make_trainer(tmp_path, WeightAveraging(1), restore_callback_states_from_checkpoint=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert agree(copies(resumed.model), mean_of(weights_of("ipet"), (2, 3, 4)))


def test_a_file_that_cannot_be_written_to_its_end_leaves_the_old_one(tmp_path, monkeypatch):
    averaging = WeightAveraging(1)
    averaging.update({"weight": torch.ones(2)})
    averaging.write(tmp_path / FILE_NAME)

    def save_half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(weight_averaging, "save_file", save_half)
    averaging.update({"weight": torch.zeros(2)})
    with pytest.raises(OSError, match="no space"):
        averaging.write(tmp_path / FILE_NAME)
    assert load_file(tmp_path / FILE_NAME)["weight"].tolist() == [1, 1]


def test_the_average_of_half_precision_weights_does_not_lose_digits():
    averaging, values = WeightAveraging(1), [1.0, 1.0078125, 1.0, 1.0]  # neighbors in bfloat16
    for value in values:
        averaging.update({"weight": torch.full((1,), value, dtype=torch.bfloat16)})
    assert averaging.average["weight"].item() == pytest.approx(sum(values) / 4, abs=1e-7)


def damage_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_epochs(path):
    save_file(load_file(path), path, metadata={"first": "1", "count": "2"})


def damage_names(path):
    save_file({"other": torch.ones(2)}, path, metadata={"first": "2", "count": "2"})


def damage_shapes(path):
    save_file({"weight": torch.ones(3)}, path, metadata={"first": "2", "count": "2"})


@pytest.mark.parametrize(
    "damage, message",
    [
        (Path.unlink, "not found.*needed"),
        (damage_half, "damaged"),
        (damage_epochs, "is the average of 2 epochs from 1 on, 2 from 2 on are needed"),
        (damage_names, "other is missing or of another shape"),
        (damage_shapes, "weight is missing or of another shape"),
    ],
)
def test_an_average_that_cannot_be_gone_on_with_is_refused(tmp_path, damage, message):
    averaging, path = WeightAveraging(2), tmp_path / FILE_NAME
    for value in (1.0, 2.0):
        averaging.update({"weight": torch.full((2,), value)})
    averaging.write(path)
    resumed = WeightAveraging(2)
    resumed.read(path, {"weight": torch.zeros(2)}, count=2)
    assert resumed.average["weight"].tolist() == [1.5, 1.5] and resumed.count == 2
    damage(path)
    with pytest.raises(ValueError, match=f"{FILE_NAME}: .*{message}"):
        WeightAveraging(2).read(path, {"weight": torch.zeros(2)}, count=2)


def test_a_checkpoint_without_the_average_it_needs_is_refused(finished, tmp_path):
    shutil.copytree(finished / "checkpoint-9", tmp_path / "checkpoint-9")
    (tmp_path / "checkpoint-9" / FILE_NAME).unlink()
    trainer, _ = make_trainer(tmp_path, WeightAveraging(2))
    with pytest.raises(ValueError, match=f"checkpoint-9.{FILE_NAME}: not found"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))


@pytest.mark.parametrize("first, last", [(0, None), (3, 2)])
def test_epochs_out_of_order_are_refused(first, last):
    with pytest.raises(ValueError, match=f"got first={first}, last={last}"):
        WeightAveraging(first, last)


@pytest.mark.parametrize(
    "epochs, options, kind, message",
    [
        ((2, 5), {}, "NO", "are 2 to 5, but training has 4"),
        ((5,), {}, "NO", "are 5 to 4, but training has 4"),
        ((2,), {"load_best_model_at_end": True, "eval_strategy": "epoch"}, "NO", "turn one of them off"),
        ((2,), {}, "DEEPSPEED", "train with DDP"),
        ((2,), {}, "FSDP", "train with DDP"),
    ],
)
def test_a_training_that_does_not_fit_is_refused_at_its_start(tmp_path, monkeypatch, epochs, options, kind, message):
    args = TrainingArguments(str(tmp_path), save_strategy="epoch", report_to=[], use_cpu=True, **options)
    fitting = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    start = {"state": TrainerState(num_train_epochs=4), "control": None, "model": torch.nn.Linear(1, 1)}
    WeightAveraging(2, 3).on_train_begin(fitting, **start)
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType(kind))
    with pytest.raises(ValueError, match=message):
        WeightAveraging(*epochs).on_train_begin(args, **start)


@pytest.mark.parametrize(
    "first, message, epochs", [(3, "no weights were averaged", (2,)), (1, "over 2 epochs; 2 are missing", (1, 2))]
)
def test_a_training_that_ends_early_is_warned_of(tmp_path, weights_of, caplog, first, message, epochs):
    trainer, _ = make_trainer(tmp_path, WeightAveraging(first), save_strategy="no")

    class Stop(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.epoch >= 2

    trainer.add_callback(Stop())
    trainer.train()
    assert message in caplog.text
    assert agree(copies(trainer.model), mean_of(weights_of("ipet"), epochs))
