"""Checkpoints of whole models: what is loaded from them is what was saved."""

import pytest
import torch
from clips import Clips
from tiny import BACKBONES
from transformers import AutoModelForAudioClassification, TrainingArguments

from peft_audio import last_complete_checkpoint
from peft_audio.trainer import AudioTrainer


def make_trainer(backbone, folder, **options):
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=3,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        eval_strategy="epoch",
        save_strategy="epoch",
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        **options,
    )
    clips = Clips(backbone)
    return AudioTrainer(BACKBONES[backbone](), arguments, train_dataset=clips, eval_dataset=clips)


def weights_at(trainer):
    """By epoch, copies of the weights, filled while it trains."""
    seen = {}
    evaluate = trainer.evaluate

    def recorded(*args, **kwargs):
        seen[round(trainer.state.epoch)] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        return evaluate(*args, **kwargs)

    trainer.evaluate = recorded
    return seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backbone", ["ast", "wav2vec2"])
def test_the_whole_model_resumes_where_it_was(backbone, tmp_path):
    whole = make_trainer(backbone, tmp_path, save_total_limit=None)
    expected = weights_at(whole)
    whole.train()
    resumed = make_trainer(backbone, tmp_path)
    torch.nn.init.zeros_(next(resumed.model.parameters()))  # whatever is not loaded is seen
    actual = weights_at(resumed)
    *_, last = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in last.rglob("*"):
        path.unlink()
    last.rmdir()
    resumed.train(resume_from_checkpoint=last_complete_checkpoint(tmp_path))
    assert list(actual) == [3]
    for name, value in expected[3].items():
        torch.testing.assert_close(actual[3][name], value, msg=name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backbone", ["ast", "wav2vec2"])
def test_the_best_model_is_the_one_of_its_epoch(backbone, tmp_path):
    options = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = make_trainer(backbone, tmp_path, save_total_limit=None, **options)
    seen = weights_at(trainer)
    trainer.train()
    best = round(trainer.state.best_global_step / (trainer.state.global_step / 3))
    assert best < 3  # the worst, that is: training goes on well
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, seen[best][name]), name


@pytest.mark.filterwarnings("ignore")
def test_the_saved_model_keeps_its_published_names(tmp_path):
    trainer = make_trainer("ast", tmp_path)
    trainer.save_model(str(tmp_path / "model"))
    trainer.model.save_pretrained(tmp_path / "plain")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("model", "plain")]
    assert files[0] == files[1]
    again = AutoModelForAudioClassification.from_pretrained(tmp_path / "model")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in trainer.model.state_dict().items())
