"""Speaker verification from the voices to the error rate: on stand-ins, and on generated speech of unseen speakers."""

import contextlib
import csv
import dataclasses
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import generated_voices
import numpy as np
import pytest
import soundfile
import speaker_verification
import torch
from experiments import parts, runs
from experiments.backbones import load_backbone
from experiments.recipe import load_recipe
from layouts import LAYOUTS, write_audio
from sklearn.metrics import roc_curve
from sounds import save_model
from speaker_verification import (
    Trial,
    read_trials,
    recordings_of,
    score_trials,
    speaker_embeddings_of,
    use_speaker_embeddings,
)
from tiny import make
from train_classification import apply_method
from transformers import set_seed

from peft_audio.metrics import equal_error_rate


BACKBONE = Path(speaker_verification.__file__).parent / "assets" / "ast-tiny-synthetic"
PNG = b"\x89PNG"


# ---- embeddings and scores ------------------------------------------------------------------------------------------


def test_a_score_is_the_cosine_of_the_angle_between_two_codes():
    embeddings = np.random.default_rng(0).normal(size=(3, 4))
    a, b, c = (Path(f"id{index}/video1/1.wav") for index in range(3))
    trials = [Trial(True, b, a), Trial(False, a, c), Trial(False, c, b)]
    # Recordings are numbered as they come up: b, a, c.
    assert [clip.source for clip in recordings_of(trials)] == [b, a, c]
    scores, labels = score_trials(embeddings, trials)
    pairs = ((0, 1), (1, 2), (2, 0))
    by_hand = [
        embeddings[i] @ embeddings[j] / np.sqrt((embeddings[i] @ embeddings[i]) * (embeddings[j] @ embeddings[j]))
        for i, j in pairs
    ]
    np.testing.assert_allclose(scores, by_hand, rtol=1e-12)
    assert labels.tolist() == [1, 0, 0]


def test_codes_are_the_output_of_the_heads_first_layer():
    model = use_speaker_embeddings(make("ast"), code_size=6).eval()
    spectrograms = torch.randn(2, 46, 36, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), speaker_embeddings_of(model) as embeddings:
        logits = model(spectrograms).logits
        pooled = model.audio_spectrogram_transformer(spectrograms).pooler_output
    weights = {name: value.numpy().astype(np.float64) for name, value in model.classifier.state_dict().items()}
    expected = pooled.numpy() @ weights["code.weight"].T + weights["code.bias"]
    assert len(embeddings) == 1
    np.testing.assert_allclose(embeddings[0], expected, atol=1e-5)
    centered = expected - expected.mean(axis=1, keepdims=True)
    normed = centered / np.sqrt((centered**2).mean(axis=1, keepdims=True) + model.classifier.norm.eps)
    normed = normed * weights["norm.weight"] + weights["norm.bias"]
    np.testing.assert_allclose(logits, normed @ weights["speakers.weight"].T + weights["speakers.bias"], atol=1e-5)


def test_a_copy_of_the_script_needs_nothing_but_the_package(tmp_path):
    script = shutil.copy(speaker_verification.__file__, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(Path(speaker_verification.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, script, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--trials" in done.stdout


# ---- runs on stand-ins -----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Finished:
    """A run, the speaker embeddings of its last test, `(cuts, code_size)`, and where its data and its features lie."""

    folder: Path
    data: Path
    setting: runs.Setting
    embeddings: np.ndarray

    @property
    def result(self):
        return json.loads((self.folder / "result.json").read_text())

    @property
    def options(self):
        return {"output_dir": str(self.folder), "use_cpu": True, "disable_tqdm": True}

    def arguments(self, *more):
        places = ("--data_dir", str(self.data), "--cache_dir", str(self.setting.cache_dir))
        return [str(self.folder), *places, "--use_cpu", *more]


def train(recipe, data, model, folder, musan=None):
    """Run the recipe as `run_recipe.py` does."""
    setting = runs.Setting(
        folder, folder / "cache", str(model), musan, trainer={"use_cpu": True, "disable_tqdm": True}
    )
    (part,) = parts.parts_of(recipe, data)
    tested = []
    metrics_of_trials = runs.metrics_of_trials

    def keep_codes(recipe, trials):
        def compute(prediction):
            tested.append(prediction.predictions)
            return metrics_of_trials(recipe, trials)(prediction)

        return compute

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "metrics_of_trials", keep_codes)
        runs.run(recipe, part, 0, setting)
    return Finished(folder / recipe.name / "trials" / "seed-0", data, setting, tested[-1])


@pytest.fixture(scope="module", params=["ast", "wav2vec2"])
def tones(request, tmp_path_factory):
    """A few steps on tones, with a tiny model in the layout of the published one."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "data").mkdir()
    LAYOUTS["voxceleb1"](folder / "data")
    for path in (folder / "data").rglob("*.wav"):
        write_audio(path, [path.parts[-3]], seconds=0.5)  # long enough for segments of an AST that differ
    for kind in ("music", "noise", "speech"):
        (folder / "musan" / kind).mkdir(parents=True)
        soundfile.write(folder / "musan" / kind / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    recipe = load_recipe(f"ipet/{request.param}-voxceleb1")
    changes = {"epochs": 2, "frames": 20, "test_segments": 3, "spec_augment": None, "learning_rate": 0.1}
    recipe = dataclasses.replace(recipe, **changes)
    return train(recipe, folder / "data", save_model(folder / "model", request.param), folder, folder / "musan")


def test_a_reloaded_run_gives_the_speaker_embeddings_of_its_last_test(tones):
    verifier = speaker_verification.load_verifier(tones.folder)
    trials = read_trials(tones.data)
    embeddings = speaker_verification.extract_embeddings(verifier, trials, tones.setting.cache_dir, **tones.options)
    recordings = recordings_of(trials)
    assert tones.embeddings.shape == (3 * len(recordings), 128)
    by_hand = [tones.embeddings[3 * index : 3 * index + 3].mean(axis=0) for index in range(len(recordings))]
    np.testing.assert_allclose(embeddings, by_hand, rtol=1e-5, atol=1e-6)
    assert np.abs(embeddings[0] - embeddings[-1]).max() > 1e-3  # else all would agree


def test_a_run_is_scored_where_its_model_has_moved_to(tones, tmp_path):
    model = tones.result["settings"]["model"]
    shutil.copytree(model, tmp_path / "moved")
    shutil.copytree(tones.folder, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == model
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (tmp_path / "run" / "adapter_config.json").write_text(json.dumps(config))
    arguments = [str(tmp_path / "run"), *tones.arguments()[1:]]
    with pytest.raises(ValueError, match="gone: neither a folder"):
        speaker_verification.main(arguments)
    moved = speaker_verification.main([*arguments, "--model_name_or_path", str(tmp_path / "moved")])
    assert moved["equal_error_rate"] == tones.result["epochs"]["test"]["equal_error_rate"][-1]


def test_another_list_of_trials_and_another_folder(tones, tmp_path):
    lines = (tones.data / "veri_test.txt").read_text().splitlines()
    swapped = [f"{label} {second} {first}" for label, first, second in map(str.split, lines)]
    (tones.data / "swapped.txt").write_text("\n".join(swapped) + "\n")
    speaker_verification.main(tones.arguments("--output_dir", str(tmp_path / "original")))
    more = ("--trials", "swapped.txt", "--output_dir", str(tmp_path / "swapped"))
    speaker_verification.main(tones.arguments(*more))
    one, other = (list(csv.DictReader((tmp_path / name / "scores.csv").open())) for name in ("original", "swapped"))
    assert [(row["second"], row["first"]) for row in other] == [(row["first"], row["second"]) for row in one]
    # The order of the recordings is another, so they are in other places of the batch.
    scores = ([float(row["score"]) for row in rows] for rows in (one, other))
    np.testing.assert_allclose(*scores, atol=1e-5)


def change_result(folder, **settings):
    result = json.loads((folder / "result.json").read_text())
    result["settings"] |= settings
    (folder / "result.json").write_text(json.dumps(result))


def without_embeddings(folder):
    recipe = json.loads((folder / "result.json").read_text())["settings"]["recipe"]
    change_result(folder, recipe=recipe | {"code_size": None})


def without_a_setting(folder):
    recipe = json.loads((folder / "result.json").read_text())["settings"]["recipe"]
    del recipe["test_segments"]
    change_result(folder, recipe=recipe)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: (folder / "result.json").unlink(), "result.json: cannot be read"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "holds no adapter_model.safetensors"),
        (without_embeddings, "has no speaker embeddings. Give the run of a verification recipe"),
        (without_a_setting, "result.json: is no recipe of this version .*'test_segments'"),
        (lambda folder: (folder / "result.json").write_text("[]"), "result.json: is no recipe of this version"),
    ],
)
def test_a_folder_that_is_no_finished_verification_is_refused(spoil, message, tones, tmp_path):
    shutil.copytree(tones.folder, tmp_path / "run")
    spoil(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        speaker_verification.load_verifier(tmp_path / "run")


def test_bad_recordings_are_listed_and_old_scores_stay(tones, tmp_path):
    shutil.copytree(tones.data, tmp_path / "data")
    bad = read_trials(tmp_path / "data")[0].second
    bad.write_bytes(b"no audio")
    (tmp_path / "scores.csv").write_text("old")
    arguments = tones.arguments("--output_dir", str(tmp_path))
    arguments[arguments.index("--data_dir") + 1] = str(tmp_path / "data")
    with pytest.raises(ValueError, match=f"1 of 3 audio files cannot be used:\n.*{bad.name}: unreadable"):
        speaker_verification.main(arguments)
    assert (tmp_path / "scores.csv").read_text() == "old"


# ---- generated voices ------------------------------------------------------------------------------------------------


SENTENCES = 6  # of every speaker, in three videos


@pytest.fixture(scope="session")
def voices(tmp_path_factory):
    pytest.importorskip("espeakng_loader", reason="the voices are those of eSpeak NG")
    folder = tmp_path_factory.mktemp("generated") / "voices"
    generated_voices.write_corpus(folder, SENTENCES)
    return folder


def lines_of(path):
    return [line.split() for line in path.read_text().splitlines()]


def test_the_corpus_holds_what_its_lists_name(voices):
    names = {path.relative_to(voices / "wav").as_posix() for path in voices.rglob("*.wav")}
    split = {name: subset for subset, name in lines_of(voices / "iden_split.txt")}
    assert set(split) == names
    by_speaker = {}
    for name in sorted(names):
        by_speaker.setdefault(name.split("/")[0], []).append(split[name])
    assert len(by_speaker) == 60
    assert all(subsets == ["1", "1", "1", "1", "2", "3"] for subsets in by_speaker.values())
    assert {name for _, *pair in lines_of(voices / "veri_test.txt") for name in pair} <= names
    assert {path.name for path in voices.parent.iterdir()} == {"voices"}  # nothing partial is left


def test_recordings_are_speech_of_one_level_at_16_khz(voices):
    for path in sorted(voices.rglob("*.wav"))[::20]:
        waveform, rate = soundfile.read(path)
        assert rate == 16000 and waveform.ndim == 1
        assert 3 < len(waveform) / rate < 12
        assert np.abs(waveform).max() == pytest.approx(0.5, abs=1e-3)


def test_trials_are_balanced_and_give_nothing_away(voices):
    trials = lines_of(voices / "veri_test.txt")
    assert len({tuple(trial) for trial in trials}) == len(trials)
    assert sum(label == "1" for label, *_ in trials) == len(trials) / 2 == 12 * 12
    for label, first, second in trials:
        (speaker, video, sentence), (other, other_video, other_sentence) = first.split("/"), second.split("/")
        assert (speaker == other) == (label == "1")
        assert sentence != other_sentence
        assert speaker != other or video != other_video  # no microphone is in both recordings


def test_no_voice_of_the_trials_is_heard_in_training(voices):
    (part,) = parts.parts_of(load_recipe("ipet/ast-voxceleb1"), voices)
    tested = {clip.source.parts[-3] for clip in part.splits.test}
    assert len(part.splits.labels) == 48 and len(tested) == 12
    assert not tested & set(part.splits.labels)


def test_the_same_samples_are_spoken_in_every_process():
    pytest.importorskip("espeakng_loader", reason="the voices are those of eSpeak NG")
    # The library speaks the same words differently the second time, and breathes at random.
    utterances = [generated_voices.Utterance(speaker, 0) for speaker in (6, 6, 49)]
    first, second = generated_voices.speak(utterances), generated_voices.speak(utterances)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_the_synthesiser_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install espeakng-loader"):
        generated_voices.main([str(tmp_path / "voices")])
    assert not list(tmp_path.iterdir())


def test_a_voice_that_the_synthesiser_lacks_is_refused(monkeypatch):
    pytest.importorskip("espeakng_loader", reason="it lists the voices of eSpeak NG")
    monkeypatch.setattr(generated_voices, "VOICES", ("m1", "nobody"))
    with pytest.raises(ValueError, match="eSpeak NG has no voice nobody"):
        generated_voices.synthesize([generated_voices.Utterance(speaker, 0) for speaker in (0, 1)])


@pytest.mark.parametrize("sentences", [2, 99])
def test_a_number_of_sentences_out_of_range_is_refused(sentences, tmp_path):
    with pytest.raises(ValueError, match=f"sentences must be a whole number from 3 to 8, got {sentences}"):
        generated_voices.write_corpus(tmp_path / "voices", sentences)


def test_a_folder_with_files_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there already"):
        generated_voices.write_corpus(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# ---- from the voices to the error rate -------------------------------------------------------------------------------


SPOKEN = {"frames": 192, "test_segments": 2, "spec_augment": None, "noise": False, "epochs": 6, "batch_size": 16}
SPOKEN |= {"learning_rate": 5e-3, "options": {"num_virtual_tokens": 4, "bottleneck_dim": 64, "scaling": 1.0}}


@pytest.fixture(scope="session")
def spoken(voices, tmp_path_factory):
    """The bundled backbone, trained on the voices that are in no trial: about 20 s."""
    recipe = load_recipe("ipet/ast-voxceleb1", SPOKEN)
    return train(recipe, voices, BACKBONE, tmp_path_factory.mktemp("spoken"))


@pytest.fixture(scope="session")
def scored(spoken):
    """What the script returns, the lines of its scores, and what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        metrics = speaker_verification.main(spoken.arguments())
    with (spoken.folder / "scores.csv").open() as file:
        return metrics, list(csv.DictReader(file)), printed.getvalue()


def test_unseen_voices_are_told_apart_and_training_helps(spoken, scored):
    trained = scored[0]["equal_error_rate"]
    verifier = speaker_verification.load_verifier(spoken.folder)
    recipe = load_recipe("ipet/ast-voxceleb1", SPOKEN)
    set_seed(0)
    untrained = load_backbone(recipe, str(BACKBONE), [str(index) for index in range(48)], spoken.folder / "base")
    untrained = apply_method(untrained, recipe.method, **recipe.options)
    trials = read_trials(spoken.data)
    embeddings = speaker_verification.extract_embeddings(
        verifier._replace(model=untrained), trials, spoken.setting.cache_dir, **spoken.options
    )
    assert trained < 0.3  # 0.5 at chance
    assert trained < equal_error_rate(*score_trials(embeddings, trials)) - 0.02


def test_scores_are_those_of_the_list_and_give_the_error_rate(spoken, scored):
    metrics, rows, _ = scored
    assert [[row["label"], row["first"], row["second"]] for row in rows] == lines_of(spoken.data / "veri_test.txt")
    scores, labels = (np.array([float(row[name]) for row in rows]) for name in ("score", "label"))
    assert (np.abs(scores) <= 1 + 1e-6).all()
    false_accepts, hits, _ = roc_curve(labels, scores, drop_intermediate=False)
    crossing = np.abs(false_accepts - (1 - hits)).argmin()
    # Of 144 trials of each kind, the rates where they cross differ by less than the share of one.
    assert metrics["equal_error_rate"] == pytest.approx(false_accepts[crossing], abs=1 / 144)


def test_the_script_measures_prints_and_draws_what_the_run_measured(spoken, scored):
    metrics, _, printed = scored
    assert metrics == {name: values[-1] for name, values in spoken.result["epochs"]["test"].items()}
    rate = f"{100 * metrics['equal_error_rate']:.2f} %"
    assert "288 trials of 72 recordings in 2 segments" in printed
    assert f"EER {rate}, at the end of the run {rate}" in printed
    assert (spoken.folder / "verification.png").read_bytes()[:4] == PNG
    assert not list(spoken.folder.glob("*.partial"))


def test_a_number_of_workers_that_there_cannot_be_is_told_in_one_line(capsys):
    with pytest.raises(SystemExit):
        speaker_verification.main(["run", "--data_dir", "x", "--num_workers", "-1"])
    assert "--num_workers: must be a whole number from 0 to 1,024, got '-1'" in capsys.readouterr().err
