"""Every audio classifier of transformers through every path of the training script."""

import json

import pytest
import torch
import train_classification
from runs import arguments
from sounds import LABELS, save_model, tone, write_tones
from test_train_backbones import ARCHITECTURES
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

from peft_audio import AutoPeftModelForAudioClassification


OTHERS = ["dog", "rain", "siren"]
OUTPUT_LAYERS = {"ast": "classifier.dense"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    write_tones(folder / "data")
    return folder


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(train_classification, "plot_curves", lambda *args: None)


def save(workspace, architecture, labels=None):
    folder = workspace / f"{architecture}-{'-'.join(labels or ['five'])}"
    fields = {}
    if labels is not None:
        ids = {label: index for index, label in enumerate(labels)}
        fields = {"num_labels": len(labels), "id2label": dict(enumerate(labels)), "label2id": ids}
    return folder.name if folder.exists() else save_model(folder, architecture, **fields).rpartition("/")[2]


def run(workspace, out, model, *more, method="ipet"):
    options = ("--fold", "1", "--per_device_train_batch_size", "4", *more)
    return train_classification.main(arguments(workspace, out, *options, model=model, method=method))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("labels", [list(LABELS), OTHERS, None], ids=["same_names", "other_names", "another_number"])
def test_whatever_the_models_own_labels_are(architecture, labels, workspace, tmp_path):
    model = save(workspace, architecture, labels)
    results = run(workspace, tmp_path, model, "--save_strategy", "no", "--learning_rate", "1e-9")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path)
    assert list(again.config.id2label.values()) == list(LABELS) and 0 <= results["eval_accuracy"] <= 1
    if labels is not None:  # the old output layer is for the old names
        old = AutoModelForAudioClassification.from_pretrained(workspace / model, dtype=torch.float32)
        name = OUTPUT_LAYERS.get(architecture, "classifier")
        weights = [one.get_submodule(name).weight for one in (old, again.unload())]
        assert torch.allclose(*weights, atol=1e-6) == (labels == list(LABELS))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_resuming_ends_where_an_uninterrupted_run_does(architecture, workspace, tmp_path):
    model = save(workspace, architecture)
    more = ("--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "9", "--adapter_dropout", "0")
    whole = run(workspace, tmp_path / "whole", model, *more)
    resumed = run(
        workspace, tmp_path / "resumed", model, *more, "--resume_from_checkpoint", str(tmp_path / "whole/checkpoint-2")
    )
    assert resumed["eval_loss"] == pytest.approx(whole["eval_loss"], abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_linear_probe_runs_the_frozen_part_once_where_it_can(architecture, workspace, tmp_path, caplog, monkeypatch):
    model, calls = save(workspace, architecture), []
    cached = train_classification.peft_audio.trainer.cache_training_data

    def counted(*args):
        calls.append(cached(*args))
        return calls[-1]

    monkeypatch.setattr(train_classification.peft_audio.trainer, "cache_training_data", counted)
    results = run(workspace, tmp_path, model, method="linear_probe")
    assert len(calls) == 1, caplog.text
    monkeypatch.setattr(train_classification, "with_frozen_states", lambda model, data, *args: data)
    plain = run(workspace, tmp_path / "plain", model, method="linear_probe")
    assert results["eval_loss"] == pytest.approx(plain["eval_loss"], abs=1e-4)
    assert results["probe_accuracy"] == plain["probe_accuracy"]


@pytest.mark.parametrize("architecture", ["ast", "wav2vec2", "whisper"])
def test_the_upper_layers_train_from_frozen_states(architecture, workspace, tmp_path):
    model = save(workspace, architecture)
    more = ("--layers_to_transform", "-1", "--save_strategy", "no", "--learning_rate", "1e-3")
    cached = run(workspace, tmp_path / "a", model, *more, "--cache_frozen")
    plain = run(workspace, tmp_path / "b", model, *more)
    assert cached["eval_loss"] == pytest.approx(plain["eval_loss"], abs=1e-3)
    with pytest.raises(train_classification.UsageError, match="--cache_frozen: "):
        run(workspace, tmp_path / "c", model, "--cache_frozen", method="full")


def test_whisper_gets_as_long_as_the_clips(workspace, tmp_path, caplog):
    save_model(workspace / "two", "whisper", max_source_positions=100)
    path = workspace / "two" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chunk_length": 2, "n_samples": 32000}))
    run(workspace, tmp_path / "long", "two", "--save_strategy", "no")
    assert "The longest clip has 1 s, but the model pads each to 2 s: 100 tokens instead of 50" in caplog.text
    assert "max_seconds=1" in caplog.text
    caplog.clear()
    run(workspace, tmp_path / "short", "two", "--save_strategy", "no", "--max_seconds", "0.5", "--mask_padding")
    assert "input is now 1 s long" in caplog.text
    model = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "short")
    assert model.config.max_source_positions == 50 and model.config.padding_mask
    clip = {"raw": tone("low"), "sampling_rate": 16000}
    scores = pipeline("audio-classification", model=str(tmp_path / "short"))(dict(clip))
    assert {entry["label"] for entry in scores} == set(LABELS)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "short")
    by_class = pipeline("audio-classification", model=model, feature_extractor=extractor)(dict(clip))
    assert [entry["score"] for entry in scores] == pytest.approx([entry["score"] for entry in by_class], abs=1e-5)


def test_a_probe_with_a_padding_mask_is_cached_too(workspace, tmp_path, caplog):
    model = save(workspace, "whisper")
    cached = run(workspace, tmp_path / "a", model, "--mask_padding", method="linear_probe")
    assert "Every epoch runs" not in caplog.text
    plain = run(
        workspace, tmp_path / "b", model, "--mask_padding", "--layers_to_transform", "-1", "--learning_rate", "1e-9"
    )
    assert cached["probe_accuracy"] == plain["probe_accuracy"]


def test_padding_masks_are_for_whisper(workspace, tmp_path):
    with pytest.raises(
        train_classification.UsageError, match="use_padding_mask takes a WhisperForAudioClassification"
    ):
        run(workspace, tmp_path, save(workspace, "ast"), "--mask_padding")


def test_the_heads_rate_and_the_probe_can_be_chosen(workspace, tmp_path):
    model = save(workspace, "ast")
    results = run(workspace, tmp_path / "a", model, "--head_learning_rate", "1e-3", "--no_compare_with_probe")
    assert "probe_accuracy" not in results
    other = run(workspace, tmp_path / "b", model, "--head_learning_rate", "1e-1")
    assert other["eval_loss"] != pytest.approx(results["eval_loss"], abs=1e-4) and 0 <= other["probe_accuracy"] <= 1
