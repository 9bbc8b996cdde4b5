"""Training x-vectors and scoring trials of unseen voices, from the command line to the error rate, on tiny models."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import speaker_verification
import torch
from events import RATE, save_bare
from runs import run_card
from safetensors.torch import load_file
from speaker_verification import main, train
from tasks import XVECTOR
from transformers import AutoFeatureExtractor

import peft_audio
from peft_audio.data import BadAudioError, DataError, RandomCrops, read_speakers
from peft_audio.trainer import METHODS, UsageError, apply_method
from peft_audio.trainer.frames import frame_grid
from peft_audio.trainer.xvector_trainer import least_seconds


def voice(pitch, seconds, seed):
    """A hum of this pitch, with its overtones, in noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    tones = [np.sin(2 * np.pi * pitch * n * time + rng.uniform(0, 6)) / n for n in (1, 2, 3)]
    return (0.2 * sum(tones) + 0.02 * rng.normal(size=time.size)).astype(np.float32)


def write_voices(folder, speakers=8, tested=4, recordings=4):
    """Speakers of other pitches in VoxCeleb1's layout; trials of every second one of them, in `tested`."""
    names = [f"id{index}" for index in range(speakers)]
    for index, name in enumerate(names):
        for number in range(recordings):
            path = folder / "wav" / name / f"video{number}" / "1.wav"
            path.parent.mkdir(parents=True)
            soundfile.write(path, voice(150 * 1.35**index, 0.25 + 0.05 * number, 10 * index + number), RATE)
    held = names[1::2][:tested]
    paths = [f"{name}/video{number}/1.wav" for name in held for number in range(recordings)]
    pairs = [(one, other) for place, one in enumerate(paths) for other in paths[place + 1 :]]
    lines = [f"{int(one[:3] == other[:3])} {one} {other}" for one, other in pairs]
    (folder / "veri_test.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    write_voices(folder / "data")
    save_bare(folder / "wav2vec2", **XVECTOR)
    return folder


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(speaker_verification, "plot_curves", lambda *args: None)


def run(workspace, out, *more, model="wav2vec2", method="ipet", data="data"):
    options = ("--max_seconds", "0.2", "--test_segments", "2", "--cache_dir", str(workspace / "cache"))
    options += ("--output_dir", str(out), "--num_train_epochs", "1", "--save_strategy", "no", "--eval_strategy", "no")
    places = ("--model_name_or_path", str(workspace / model), "--data_dir", str(workspace / data))
    return train(["--method", method, *places, *options, "--use_cpu", "True", "--disable_tqdm", "True", *more])


def score(workspace, folder, *more, data="data"):
    places = ("--data_dir", str(workspace / data), "--cache_dir", str(workspace / "cache"))
    return main([str(folder), *places, "--use_cpu", *more])


@torch.no_grad()
def embedding(model, folder):
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(voice(300, 0.3, 0), sampling_rate=RATE, return_tensors="pt")
    return model.eval()(**inputs).embeddings


@pytest.mark.parametrize(
    ("model", "method"),
    [("wav2vec2", name) for name in ("lora", "full")]
    + [(name, "ipet") for name in ("wav2vec2", "wav2vec2-bert", "wavlm")],
)
def test_a_run_leaves_embeddings_that_score_the_same(model, method, workspace, tmp_path, monkeypatch, capsys):
    if not (workspace / model).exists():
        save_bare(workspace / model, model, **XVECTOR)
    trainers, report = [], speaker_verification.report
    monkeypatch.setattr(speaker_verification, "report", lambda *args: (trainers.append(args[0]), report(*args)))
    results = run(workspace, tmp_path, model=model, method=method)
    assert 0 <= results["eval_equal_error_rate"] <= 1 and results["problem"] is None
    assert (results["train_samples"], results["trials"]) == (16, 120)
    expected = embedding(trainers[0].model, tmp_path)
    verifier = speaker_verification.load_verifier(tmp_path)
    tolerance = {"rtol": 1e-4, "atol": 1e-11} if method == "full" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(embedding(verifier.model, tmp_path), expected, **tolerance)
    scored = score(workspace, tmp_path)
    assert scored["equal_error_rate"] == pytest.approx(results["eval_equal_error_rate"], abs=1e-6)
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 121
    if method == "ipet":
        _, variables = run_card(tmp_path, monkeypatch, capsys)
        assert torch.equal(embedding(variables["model"], tmp_path), expected)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_the_head_and_no_convolutions(method, workspace):
    model = apply_method(peft_audio.load_xvector(workspace / "wav2vec2", list("abc")), method).train()
    model(torch.randn(2, 4000), labels=torch.tensor([0, 2])).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(model.get_parameter(name).grad is not None for name in trained)
    assert any("objective" in name for name in trained) and any("tdnn" in name for name in trained)
    if method != "full":
        convolutions = {name for name in trained if "conv_layers" in name}
        assert all(name.endswith("bias") and method == "bitfit" for name in convolutions)


def test_unseen_voices_are_told_apart_and_training_helps(workspace, tmp_path):
    more = ("--per_device_train_batch_size", "8", "--learning_rate", "3e-3", "--head_learning_rate", "3e-3")
    untrained = run(
        workspace,
        tmp_path / "a",
        "--max_steps",
        "1",
        "--learning_rate",
        "0",
        "--head_learning_rate",
        "0",
        method="full",
    )
    trained = run(workspace, tmp_path / "b", *more, "--num_train_epochs", "20", method="full")
    assert trained["eval_equal_error_rate"] < 0.25  # 0.5 at chance
    assert trained["eval_equal_error_rate"] < untrained["eval_equal_error_rate"] - 0.05


def test_resuming_ends_where_an_uninterrupted_run_does(workspace, tmp_path):
    more = ("--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "9", "--adapter_dropout", "0")
    more += ("--per_device_train_batch_size", "8", "--num_train_epochs", "3")
    run(workspace, tmp_path / "whole", *more)
    checkpoint = ("--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-4"))
    run(workspace, tmp_path / "resumed", *more, *checkpoint)
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "resumed")]
    assert all(torch.allclose(value, weights[1][name], atol=1e-6) for name, value in weights[0].items())


def test_accumulated_batches_count_as_one(workspace, tmp_path):
    more = ("--learning_rate", "1e-3", "--max_grad_norm", "0", "--optim", "sgd", "--max_steps", "1")
    weights = []
    for name, size, steps in (("one", 16, 1), ("four", 4, 4)):
        sizes = ("--per_device_train_batch_size", str(size), "--gradient_accumulation_steps", str(steps))
        run(workspace, tmp_path / name, *more, *sizes, method="linear_probe")
        weights.append(load_file(tmp_path / name / "adapter_model.safetensors"))
    assert all(torch.allclose(value, weights[1][name], atol=1e-5) for name, value in weights[0].items())


@torch.no_grad()
def test_the_least_length_is_what_the_head_takes(workspace):
    model = peft_audio.load_xvector(workspace / "wav2vec2", list("abc")).eval()
    extractor = AutoFeatureExtractor.from_pretrained(workspace / "wav2vec2")
    least = round(least_seconds(model.config, frame_grid(model, extractor)) * RATE)
    assert model(torch.randn(1, least)).embeddings.isfinite().all()
    assert not model(torch.randn(1, least - 1)).embeddings.isfinite().all()


def test_cuts_are_the_same_every_time_and_others_in_other_epochs(workspace):
    clips = read_speakers(workspace / "data").clips[:2]
    waveforms = {clips[0].name: {"waveform": np.arange(1000.0)}, clips[1].name: {"waveform": np.arange(30.0)}}
    crops = RandomCrops(clips, waveforms, ["id0"], 100, seed=3)
    first = crops[0]["waveform"]
    assert np.array_equal(first, first[0] + np.arange(100)) and np.array_equal(crops[0]["waveform"], first)
    assert np.array_equal(crops[1]["waveform"], np.arange(100) % 30)
    starts = []
    for epoch in range(5):
        crops.set_epoch(epoch)
        starts.append(crops[0]["waveform"][0])
    assert len(set(starts)) > 1


def spoiled(workspace, tmp_path, change):
    shutil.copytree(workspace / "data", tmp_path / "data")
    change(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda data: [shutil.rmtree(data / "wav" / f"id{index}") for index in (0, 2, 4)],
            "two speakers or more .* found 1",
        ),
        (
            lambda data: (data / "veri_test.txt").write_text("1 a\n"),
            "veri_test.txt line 1: must be 'is_same path path'",
        ),
        (lambda data: (data / "wav" / "id1" / "video0" / "1.wav").unlink(), "1 audio files are missing"),
        (lambda data: (data / "wav" / "id0" / "video0" / "1.wav").write_bytes(b""), "1.wav: empty"),
        (lambda data: (data / "veri_test.txt").unlink(), "must be a folder with veri_test.txt"),
    ],
)
def test_data_that_cannot_be_used_are_told(change, expected, workspace, tmp_path):
    with pytest.raises((DataError, BadAudioError, UsageError), match=expected):
        run(workspace, tmp_path / "out", data=spoiled(workspace, tmp_path, change))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--model_name_or_path", "{}/hubert"), "of type 'hubert', of which there is no model for speaker embeddings"),
        (("--max_seconds", "0.02"), "--max_seconds 0.02: the x-vector head of this model needs at least 0.0"),
        (("--test_segments", "0"), "test_segments must be a whole number from 1 to 1,000, got 0"),
        (
            ("--load_best_model_at_end", "True", "--save_strategy", "epoch", "--eval_strategy", "epoch"),
            "needs --metric_for_best",
        ),
        (("--layers_to_transform", "99"), "--method ipet: `layers_to_transform` must be"),
    ],
)
def test_arguments_that_cannot_be_right(more, expected, workspace, tmp_path):
    if not (workspace / "hubert").exists():
        save_bare(workspace / "hubert", "hubert")
    with pytest.raises(ValueError, match=expected) as error:
        run(workspace, tmp_path / "out", *[word.format(workspace) for word in more])
    assert len(str(error.value).splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_run_of_another_script_is_no_verification(workspace, tmp_path):
    (tmp_path / "all_results.json").write_text(json.dumps({"method": "ipet"}))
    with pytest.raises(
        ValueError, match="is no run of speaker verification. Give one of `speaker_verification.py train`"
    ):
        score(workspace, tmp_path)
