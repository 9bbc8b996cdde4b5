"""The live line of a training, and what is said at its end."""

import io
import re

import pytest
import torch
import transformers
from tiny import make, make_inputs

from peft_audio.trainer import AudioTrainer, AudioTrainingArguments, single_label_metrics, what_was_saved
from peft_audio.trainer.progress import ProgressLine


class Clips(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"input_values": make_inputs("ast", 1, seed=index)["input_values"][0], "labels": index % 2}


def trainer_of(folder, learning_rate=1e-3, **options):
    args = AudioTrainingArguments(
        folder, num_train_epochs=2, per_device_train_batch_size=2, logging_steps=1, save_strategy="no", **options
    )
    args.learning_rate = learning_rate
    return AudioTrainer(
        make("ast"), args, train_dataset=Clips(), eval_dataset=Clips(), compute_metrics=single_label_metrics
    )


def test_a_training_has_one_line_with_loss_metrics_and_the_time_left(tmp_path, monkeypatch):
    screen, tqdm = io.StringIO(), transformers.trainer_callback.tqdm
    monkeypatch.setattr(
        transformers.trainer_callback, "tqdm", lambda **options: tqdm(file=screen, mininterval=0, ncols=200, **options)
    )
    trainer_of(tmp_path, eval_strategy="epoch", disable_tqdm=False).train()
    assert screen.getvalue().count("\n") == 1  # the bar's own, at its end
    last = screen.getvalue().strip().split("\r")[-1]
    assert re.search(r"4/4 \[\d\d:\d\d<\d\d:\d\d, .*loss=[\d.e-]+, eval loss=[\d.e-]+, accuracy=[\d.]+", last)
    assert "runtime" not in last and "grad_norm" not in last


@pytest.mark.parametrize("is_off", [True, False])
def test_a_bar_that_is_off_or_somebodys_own_stays_so(tmp_path, is_off):
    class Own(transformers.ProgressCallback):
        pass

    trainer = trainer_of(tmp_path, disable_tqdm=True)
    if not is_off:
        trainer.add_callback(Own)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert ProgressLine not in kinds and (Own in kinds) != is_off
    assert ProgressLine in map(type, trainer_of(tmp_path, disable_tqdm=False).callback_handler.callbacks)


def test_what_was_saved_is_told_with_sizes(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(1_250_000))
    (tmp_path / "README.md").write_text("a")
    (tmp_path / "other").write_text("b")
    told = [
        f"{tmp_path / 'adapter_model.safetensors'}: the adapter, 1.2 MB",
        f"{tmp_path / 'README.md'}: the model card, 1 KB",
    ]
    assert what_was_saved(tmp_path).splitlines() == told


def test_a_trainer_without_a_learning_rate_says_so(tmp_path):
    with pytest.raises(ValueError, match="`learning_rate` must be a number for a Trainer; .*METHODS.*, got None"):
        trainer_of(tmp_path, learning_rate=None).train()
