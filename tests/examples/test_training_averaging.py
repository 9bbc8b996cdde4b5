"""The average of weights, in runs of the Trainer: against the weights that another callback writes down."""

import os

import pytest
import torch
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
    return {name: tensor.detach().clone() for name, tensor in trained_tensors(model).items()}


def make_trainer(folder, averaging, method="ipet", die_after=None, **options):
    """Three steps an epoch, four epochs, a checkpoint after each."""
    torch.manual_seed(0)
    model = BACKBONES["ast"](num_hidden_layers=1)
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
    return Trainer(model=model, args=args, train_dataset=Clips("ast"), callbacks=callbacks), recorder


def mean_of(recorder, epochs):
    weights = [recorder.epochs[epoch] for epoch in epochs]
    return {name: torch.stack([each[name] for each in weights]).mean(dim=0) for name in weights[0]}


def agree(first, second, atol=1e-6):
    return first.keys() == second.keys() and all(
        torch.allclose(first[name], second[name], atol=atol) for name in first
    )


@pytest.mark.parametrize("method", ["ipet", "conformer", "full"])
@pytest.mark.parametrize("first, last, epochs", [(2, 3, (2, 3)), (2, None, (2, 3, 4)), (4, 4, (4,))])
def test_after_training_the_model_is_the_mean_over_the_epochs(tmp_path, method, first, last, epochs):
    trainer, recorder = make_trainer(tmp_path, WeightAveraging(first, last), method, save_strategy="no")
    frozen = {name: value.clone() for name, value in trainer.model.named_parameters() if not value.requires_grad}
    trainer.train()
    result = copies(trainer.model)
    assert agree(result, mean_of(recorder, epochs))
    assert agree(result, recorder.epochs[4], atol=1e-4) == (epochs == (4,))
    assert all(torch.equal(value, frozen[name]) for name, value in trainer.model.named_parameters() if name in frozen)


def test_the_running_statistics_of_batch_norms_that_train_are_averaged_too():
    model = get_peft_model(BACKBONES["ast"](num_hidden_layers=1), METHODS["conformer"]())
    names = set(trained_tensors(model))
    assert sum(name.endswith("running_var") for name in names) == 2  # one adapter at each of two sites
    assert not any(name.endswith("num_batches_tracked") for name in names)
    model.requires_grad_(False)
    assert trained_tensors(model) == {}


def test_the_saved_adapter_is_the_average_and_checkpoints_are_not(tmp_path):
    trainer, recorder = make_trainer(tmp_path, WeightAveraging(2))
    trainer.train()
    trainer.save_model(tmp_path / "out")
    for folder, expected in (("out", mean_of(recorder, (2, 3, 4))), ("checkpoint-12", recorder.epochs[4])):
        loaded = PeftModel.from_pretrained(BACKBONES["ast"](num_hidden_layers=1), tmp_path / folder, is_trainable=True)
        assert agree(copies(loaded), expected)


@pytest.mark.parametrize("method", ["ipet", "conformer", "full"])
@pytest.mark.parametrize(
    "save, checkpoint",
    [
        ({}, 3),  # before the first epoch of the average
        ({}, 9),
        ({}, 12),  # nothing is left to train
        ({"save_strategy": "steps", "save_steps": 2}, 8),  # within an epoch
        ({"save_strategy": "steps", "save_steps": 3}, 9),  # at its last step, before the epoch is over for callbacks
    ],
)
def test_a_resumed_run_ends_with_the_average_of_an_uninterrupted_one(tmp_path, method, save, checkpoint):
    if method != "ipet" and save:
        pytest.skip("where checkpoints are written does not depend on what trains")
    whole, recorder = make_trainer(tmp_path / "whole", WeightAveraging(2, 4), method, save_strategy="no")
    whole.train()
    killed, _ = make_trainer(tmp_path / "run", WeightAveraging(2, 4), method, checkpoint + 1, **save)
    if checkpoint == 12:
        killed.train()
    else:
        with pytest.raises(KeyboardInterrupt):
            killed.train()
    resumed, _ = make_trainer(tmp_path / "run", WeightAveraging(2, 4), method, **save)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{checkpoint}"))
    assert agree(copies(resumed.model), mean_of(recorder, (2, 3, 4)))


def test_averaging_can_begin_in_a_run_that_is_resumed(tmp_path):
    before, _ = make_trainer(tmp_path, None, die_after=4)
    with pytest.raises(KeyboardInterrupt):
        before.train()
    resumed, recorder = make_trainer(tmp_path, WeightAveraging(3))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert agree(copies(resumed.model), mean_of(recorder, (3, 4)))
    assert (tmp_path / "checkpoint-12" / FILE_NAME).is_file()


def test_restoring_callbacks_from_the_checkpoint_keeps_the_epochs(tmp_path):
    make_trainer(tmp_path, WeightAveraging(2, 3))[0].train()
    resumed, _ = make_trainer(tmp_path, WeightAveraging(1), restore_callback_states_from_checkpoint=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert agree(copies(resumed.model), load_file(tmp_path / "checkpoint-9" / FILE_NAME))


def test_a_checkpoint_that_counts_as_complete_has_its_average(tmp_path, monkeypatch):
    found = []

    def save_to_json(state, path):
        if os.path.basename(path) == TRAINER_STATE_NAME:
            found.append(os.path.exists(os.path.join(os.path.dirname(path), FILE_NAME)))
        save(state, path)

    save = TrainerState.save_to_json
    monkeypatch.setattr(TrainerState, "save_to_json", save_to_json)
    make_trainer(tmp_path, WeightAveraging(2))[0].train()
    assert found == [False, True, True, True]


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
    averaging, values = WeightAveraging(1), [1.0, 1.0078125, 1.0, 1.0]  # neighbours in bfloat16
    for value in values:
        averaging.update({"weight": torch.full((1,), value, dtype=torch.bfloat16)})
    assert averaging.average["weight"].item() == pytest.approx(sum(values) / 4, abs=1e-7)


def damage_missing(path):
    path.unlink()


def damage_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_epochs(path):
    save_file(load_file(path), path, metadata={"first": "1", "count": "2"})


def damage_names(path):
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={"first": "2", "count": "2"})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    make_trainer(folder, WeightAveraging(2))[0].train()
    return folder


@pytest.mark.parametrize(
    "damage, message",
    [
        (damage_missing, "not found.*needed"),
        (damage_half, "damaged"),
        (damage_epochs, "is the average of 2 epochs from 1 on, 2 from 2 on are needed"),
        (damage_names, "is missing or of another shape"),
    ],
)
def test_an_average_that_cannot_be_gone_on_with_is_refused(finished, damage, message):
    path = finished / "checkpoint-9" / FILE_NAME
    whole = path.read_bytes()
    try:
        damage(path)
        trainer, _ = make_trainer(finished, WeightAveraging(2))
        with pytest.raises(ValueError, match=f"checkpoint-9/{FILE_NAME}: .*{message}"):
            trainer.train(resume_from_checkpoint=str(finished / "checkpoint-9"))
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("first, last", [(0, None), (3, 2)])
def test_epochs_out_of_order_are_refused(first, last):
    with pytest.raises(ValueError, match=f"got first={first}, last={last}"):
        WeightAveraging(first, last)


@pytest.mark.parametrize(
    "averaging, options, message",
    [
        (WeightAveraging(2, 5), {}, "are 2 to 5, but training has 4"),
        (WeightAveraging(5), {}, "are 5 to 4, but training has 4"),
        (WeightAveraging(2), {"load_best_model_at_end": True, "eval_strategy": "epoch"}, "turn one of them off"),
    ],
)
def test_a_training_that_does_not_fit_is_refused_before_its_first_step(tmp_path, averaging, options, message):
    trainer, recorder = make_trainer(tmp_path, averaging, **options)
    trainer.eval_dataset = trainer.train_dataset
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


def test_sharded_weights_are_refused(tmp_path, monkeypatch):
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    trainer, _ = make_trainer(tmp_path, WeightAveraging(2))
    averaging, state = WeightAveraging(2), TrainerState(num_train_epochs=4)
    monkeypatch.setitem(AcceleratorState._shared_state, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(ValueError, match="train with DDP"):
        averaging.on_train_begin(trainer.args, state, trainer.control, model=trainer.model)


def test_a_training_that_ends_early_is_warned_of_and_keeps_its_weights(tmp_path, caplog):
    trainer, recorder = make_trainer(tmp_path, WeightAveraging(3), save_strategy="no")

    class Stop(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    trainer.add_callback(Stop())
    trainer.train()
    assert "no weights were averaged" in caplog.text
    assert agree(copies(trainer.model), recorder.epochs[1])
