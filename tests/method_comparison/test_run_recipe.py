"""Recipes on stand-ins: made-up copies of the data sets, and tiny models in the layouts of the published ones."""

import csv
import dataclasses
import json
import re
from collections import Counter

import numpy as np
import pytest
import run_recipe
import soundfile
import torch
from experiments import parts, runs
from experiments.inputs import Preparation, TestSet, TrainingSet, targets_of
from experiments.recipe import RecipeError, load_recipe, recipe_names
from experiments.report import summarize
from experiments.trainer import DivergedError, averaged, metrics_of
from experiments.verification import metrics_of_trials
from layouts import LAYOUTS
from sounds import LABELS, save_model, write_tones
from ssast import make_ssast
from tiny import make
from transformers import ASTFeatureExtractor, EvalPrediction

from peft_audio import AutoPeftModelForAudioClassification


# One step on a few short clips.
SMALL = {"epochs": 1, "batch_size": 32, "frames": 64}
SPEC_AUGMENT, FEW_SHOT, WEIGHT_AVERAGE, SEGMENTS = (8, 4), 1, (1, 1), 2


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.save(make_ssast(width=64), folder / "ssast.pth")
    make("deit").save_pretrained(folder / "image")
    return {
        "ast": save_model(folder / "ast", "ast"),
        "wav2vec2": save_model(folder / "wav2vec2", "wav2vec2"),
        "ssast": str(folder / "ssast.pth"),
        "image": str(folder / "image"),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in {load_recipe(name).data_set for name in recipe_names()}:
        (folder / name).mkdir()
        LAYOUTS[name](folder / name)
    with (folder / "openmic2018" / "openmic-2018-aggregated-labels.csv").open("a") as labels:
        labels.write("001138_0,piano,0.9,3\n")  # else there is nothing to find in the test clip
    for kind in ("music", "noise", "speech"):
        (folder / "musan" / kind).mkdir(parents=True)
        soundfile.write(folder / "musan" / kind / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    return folder


def small(recipe):
    """The recipe with sizes that fit the stand-ins; what it does stays."""
    options = dict(recipe.options)
    if "reduction_factor" in options:
        options["reduction_factor"] = 4
    return dataclasses.replace(
        recipe,
        **SMALL,
        options=options,
        spec_augment=recipe.spec_augment and SPEC_AUGMENT,
        few_shot=recipe.few_shot and FEW_SHOT,
        weight_average=recipe.weight_average and WEIGHT_AVERAGE,
        test_segments=min(recipe.test_segments, SEGMENTS),
    )


def setting(models, data, folder, recipe, **more):
    return runs.Setting(
        output_dir=folder,
        cache_dir=data / "cache",
        model_name_or_path=models[recipe.backbone],
        musan_dir=data / "musan",
        trainer={"use_cpu": True, "disable_tqdm": True} | more,
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_takes_a_step(name, models, data, tmp_path, monkeypatch):
    recipe = small(load_recipe(name))
    part, *_ = parts.parts_of(recipe, data / recipe.data_set)
    steps = []
    step = runs.RecipeTrainer.training_step

    def watched(trainer, *args, **kwargs):
        steps.append(step(trainer, *args, **kwargs).item())
        return torch.tensor(steps[-1])

    monkeypatch.setattr(runs.RecipeTrainer, "training_step", watched)
    result = runs.run(recipe, part, 0, setting(models, data, tmp_path, recipe, save_strategy="no"))
    assert len(steps) == 1 and np.isfinite(steps[0])
    assert 0 <= result["epochs"]["test"][recipe.metric][0] <= 1
    summary = summarize(recipe, {0: {part.name: result}})
    assert summary[recipe.metric]["last epoch"]["mean"] == result["epochs"]["test"][recipe.metric][0]


# ---- what the command line does --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("tones") / "data", clips=24, folds=2)


def arguments(models, tones, out, *changes, recipe="ipet/ast-esc50", backbone="ast"):
    return [
        *(recipe, "--data_dir", str(tones), "--model_name_or_path", models[backbone], "--output_dir", str(out)),
        *("--use_cpu", "--set", "data_set=audiofolder", "frames=46", "spec_augment=[8,4]", "learning_rate=0.01"),
        *changes,
    ]


@pytest.mark.filterwarnings("ignore")
def test_a_recipe_is_learnt_and_its_adapters_can_be_used(models, tones, tmp_path, capsys):
    summary = run_recipe.main(arguments(models, tones, tmp_path, "epochs=6", "batch_size=4"))["ipet/ast-esc50"]
    folder = tmp_path / "ipet" / "ast-esc50"
    assert summary["parts"] == ["fold-1", "fold-2"] and summary == json.loads((folder / "summary.json").read_text())
    measured = summary["measured"]["accuracy"]
    assert measured["last epoch"]["mean"] > 0.8  # three tones, a third by chance
    results = [json.loads((folder / part / "seed-0" / "result.json").read_text()) for part in summary["parts"]]
    by_epoch = np.mean([result["epochs"]["test"]["accuracy"] for result in results], axis=0)
    assert by_epoch.shape == (6,)
    assert measured["last epoch"]["mean"] == pytest.approx(by_epoch[-1])
    assert measured["best epoch on the test clips"]["mean"] == pytest.approx(by_epoch.max())
    run = folder / "fold-1" / "seed-0"
    model = AutoPeftModelForAudioClassification.from_pretrained(run)
    assert list(model.config.id2label.values()) == list(LABELS) and model.config.max_length == 46
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    right = [row["label"] == row["prediction"] for row in rows]
    assert len(rows) == 12 and np.mean(right) == results[0]["epochs"]["test"]["accuracy"][-1]
    shown = capsys.readouterr().out
    assert "96.45 %" in shown and f"{100 * measured['last epoch']['mean']:.2f} %" in shown


@pytest.mark.filterwarnings("ignore")
def test_finished_runs_are_not_trained_again_and_interrupted_ones_go_on(models, tones, tmp_path, monkeypatch):
    changes = ("epochs=3", "batch_size=4")
    whole = run_recipe.main(arguments(models, tones, tmp_path / "whole", *changes))
    stop_after, steps, step = 7, [], runs.RecipeTrainer.training_step

    def counted(trainer, *args, **kwargs):
        if len(steps) == stop_after:
            raise KeyboardInterrupt
        steps.append(trainer.state.global_step)
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(runs.RecipeTrainer, "training_step", counted)
    with pytest.raises(KeyboardInterrupt):
        run_recipe.main(arguments(models, tones, tmp_path / "parts", *changes))
    stop_after = None
    steps.clear()
    again = run_recipe.main(arguments(models, tones, tmp_path / "parts", *changes))
    assert steps[:3] == [6, 7, 8]  # on from the checkpoint of the second of three epochs of three steps
    assert len(steps) == 3 + 9
    for name in ("mean", "std_over_folds"):
        for rule, values in whole["ipet/ast-esc50"]["measured"]["accuracy"].items():
            assert again["ipet/ast-esc50"]["measured"]["accuracy"][rule][name] == pytest.approx(values[name])
    steps.clear()
    run_recipe.main(arguments(models, tones, tmp_path / "parts", *changes))
    assert not steps
    with pytest.raises(RecipeError, match="result of other settings"):
        run_recipe.main(arguments(models, tones, tmp_path / "parts", *changes, "mixup=0.5"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make_metrics", ["classes", "trials"])
def test_a_training_that_has_diverged_ends_in_one_line(make_metrics):
    recipe = load_recipe(recipe_names()[0])
    compute = metrics_of(recipe) if make_metrics == "classes" else metrics_of_trials(recipe, [])
    outputs = np.full((2 * recipe.test_segments, 3), np.nan)
    with pytest.raises(DivergedError, match="the training has diverged.*--set learning_rate="):
        compute(EvalPrediction(outputs, np.zeros(len(outputs), int)))


def test_trials_with_files_that_are_left_out_are_left_out(models, data, tmp_path):
    recipe = dataclasses.replace(small(load_recipe("ipet/ast-voxceleb1")), noise=False)
    (tmp_path / "voxceleb1").mkdir()
    LAYOUTS["voxceleb1"](tmp_path / "voxceleb1")
    part, *_ = parts.parts_of(recipe, tmp_path / "voxceleb1")
    times = Counter(path for trial in part.trials for path in (trial.first, trial.second))
    bad = min(times, key=times.get)
    bad.write_bytes(b"")
    skipping = dataclasses.replace(setting(models, tmp_path, tmp_path / "out", recipe), skip_bad_files=True)
    _, _, left = runs.prepare(recipe, part, skipping)
    assert 0 < len(left.trials) < len(part.trials)
    assert all(bad not in (trial.first, trial.second) for trial in left.trials)
    used = {path for trial in left.trials for path in (trial.first, trial.second)}
    assert {clip.source for clip in left.splits.test} == used
    assert left.splits.train == part.splits.train


@pytest.mark.filterwarnings("ignore")
def test_a_weighted_sum_of_layers_trains_and_comes_back(models, data, tmp_path):
    recipe = dataclasses.replace(small(load_recipe("ipet/wav2vec2-esc50")), weighted_layer_sum=True)
    part, *_ = parts.parts_of(recipe, data / "esc50", folds=["1"])
    runs.run(recipe, part, 0, setting(models, data, tmp_path, recipe))
    model = AutoPeftModelForAudioClassification.from_pretrained(next(tmp_path.rglob("adapter_config.json")).parent)
    weights = [value for name, value in model.named_parameters() if "layer_weights" in name and "modules_to" in name]
    assert model.config.use_weighted_layer_sum and len(weights) == 1 and len(weights[0].unique()) > 1


def test_the_list_has_all_recipes(capsys):
    run_recipe.main(["--list"])
    assert capsys.readouterr().out.split() == recipe_names()


REFUSED = {
    "no recipe": ([], "Name a recipe"),
    "no data": (["ipet/ast-esc50"], "--data_dir is missing"),
    "no value": (["ipet/ast-esc50", "--set", "epochs", "--dry_run"], "--set epochs: must be FIELD=VALUE"),
    "no such fold": (["ipet/ast-esc50", "--folds", "9"], "there is no fold 9; the folds: 1, 2, 3, 4, 5"),
    "no such folder": (["ipet/ast-esc50", "--data_dir", "gone"], "gone"),
    "no checkpoint": (["aat/ssast-esc50", "--folds", "1"], "is not on the Hub. Download"),
    "no such model": (["ipet/ast-esc50", "--model_name_or_path", "gone"], "--model_name_or_path gone: neither"),
    "no noise": (["ipet/wav2vec2-voxceleb1"], "Give its folder with --musan_dir"),
    "too few shots": (["petl/ast-esc50-lora-16-shot"], "'few_shot' is 16, but there are fewer training clips of cat"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_missing_is_named(case, models, data, tmp_path):
    given, message = REFUSED[case]
    name = given[0] if given else None
    more = ["--output_dir", str(tmp_path)]
    if name is not None and case not in ("no data", "no such folder"):
        recipe = load_recipe(name)
        more += ["--data_dir", str(data / recipe.data_set)]
        if case not in ("no checkpoint", "no such model"):
            more += ["--model_name_or_path", models[recipe.backbone]]
    with pytest.raises(run_recipe.ERRORS, match=re.escape(message)):
        run_recipe.main([*given, *more])
    assert not list(tmp_path.rglob("result.json"))


# ---- inputs ----------------------------------------------------------------------------------------------------------


class Identity:
    """A feature extractor that gives the waveform as it is."""

    sampling_rate = 100

    def __call__(self, waveform, sampling_rate, return_tensors):
        return {"input_values": waveform[None]}


def clips_of(*labels):
    return [parts.Clip(f"{index}", b"", (label,)) for index, label in enumerate(labels)]


def preparation_of(**changes):
    recipe = dataclasses.replace(load_recipe("ipet/wav2vec2-esc50"), frames=50, fill="pad", **changes)
    return Preparation(recipe, Identity())


def test_training_takes_random_cuts_and_testing_cuts_that_are_evenly_spread():
    preparation = preparation_of(random_crop=True, test_segments=3)
    clips, store = clips_of("a", "b"), {"0": {"waveform": np.arange(200.0)}, "1": {"waveform": np.arange(30.0)}}
    torch.manual_seed(0)
    training = TrainingSet(clips, store, ["a", "b"], preparation)
    starts = {int(training[0]["input_values"][0]) for _ in range(50)}
    assert len(starts) > 20 and min(starts) >= 0 and max(starts) <= 150
    torch.manual_seed(0)
    assert int(TrainingSet(clips, store, ["a", "b"], preparation)[0]["input_values"][0]) in starts
    test = TestSet(clips, store, targets_of(clips, ["a", "b"], "cross_entropy"), preparation)
    assert len(test) == 6 and [test[index]["labels"] for index in range(6)] == [0, 0, 0, 1, 1, 1]
    assert [test[index]["input_values"][0] for index in range(3)] == [0, 75, 150]
    assert all(len(test[index]["input_values"]) == 50 for index in range(6))
    assert not test[5]["input_values"][30:].any()
    np.testing.assert_allclose(averaged(np.arange(12.0).reshape(6, 2), 3), [[2, 3], [8, 9]])


@pytest.mark.parametrize("samples", [16000, 3000])
def test_spectrograms_are_the_same_from_waveforms_and_from_the_cache(samples):
    extractor = ASTFeatureExtractor(num_mel_bins=36, max_length=46, do_normalize=False)
    recipe = dataclasses.replace(load_recipe("ipet/ast-esc50"), frames=46)
    waveform = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
    preparation = Preparation(recipe, extractor, statistics=(0.0, 0.5))
    expected = extractor(waveform, sampling_rate=16000, return_tensors="np")["input_values"][0]
    actual = preparation.features(preparation.cut(waveform))["input_values"]
    np.testing.assert_array_equal(actual, expected)
    assert samples == 3000 or expected[-1].any()


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_mixed_targets_say_how_much_of_each_clip_there_is(loss):
    preparation = preparation_of(mixup=1.0, loss=loss)
    tone = np.sin(np.arange(50) * 2.0)
    other = np.sin(np.arange(50) * 0.5)
    tone, other = tone - tone.mean(), other - other.mean()
    clips = clips_of("a", "b")
    training = TrainingSet(clips, {"0": {"waveform": tone}, "1": {"waveform": other}}, ["a", "b"], preparation)
    torch.manual_seed(0)
    mixed = [item for item in (training[0] for _ in range(20)) if item["labels"][1] > 0]
    assert mixed
    for item in mixed:
        weights, *_ = np.linalg.lstsq(np.stack([tone, other], axis=1), item["input_values"], rcond=None)
        np.testing.assert_allclose(item["labels"], weights, atol=1e-5)
    plain = TrainingSet(clips, training.store, ["a", "b"], preparation_of(mixup=0.0, loss=loss))[0]["labels"]
    assert plain == 0 if loss == "cross_entropy" else list(plain) == [1, 0]


def test_labels_that_nobody_gave_do_not_count():
    clip = dataclasses.replace(clips_of("a")[0], unknown=("b",))
    store = {"0": {"waveform": np.ones(50)}}
    training = TrainingSet([clip], store, ["a", "b", "c"], preparation_of(loss="binary_cross_entropy"))
    assert list(training[0]["labels"]) == [1, -100, 0]


def test_spectrograms_are_masked_then_normalized():
    recipe = dataclasses.replace(load_recipe("ipet/ast-esc50"), spec_augment=(8, 4))
    preparation = Preparation(recipe, Identity(), statistics=(-4.0, 3.0))
    spectrogram = np.full((46, 36), 2.0, dtype=np.float32)
    assert np.allclose(preparation.finished({"input_values": spectrogram})["input_values"], (2 + 4) / 6)
    masked = preparation.finished({"input_values": spectrogram}, np.random.default_rng(1))["input_values"]
    assert set(np.unique(masked).round(5)) == {np.float32((2 + 4) / 6).round(5), np.float32((0 + 4) / 6).round(5)}
    assert (spectrogram == 2).all()


@pytest.mark.parametrize("shots", [1, 2])
def test_few_shots_are_so_many_of_every_class(shots, data):
    recipe = dataclasses.replace(load_recipe("petl/ast-esc50-lora-1-shot"), few_shot=shots)
    drawn = {}
    for seed in (0, 1):
        part, *_ = parts.parts_of(recipe, data / "esc50", seed)
        labels = [clip.labels[0] for clip in part.splits.train]
        assert sorted(labels) == sorted([*("cat", "dog", "rooster")] * shots)
        drawn[seed] = {clip.name for clip in part.splits.train}
        assert len(part.splits.test) == 3
    assert drawn[0] != drawn[1]
    again, *_ = parts.parts_of(recipe, data / "esc50", 0)
    assert {clip.name for clip in again.splits.train} == drawn[0]


def test_rules_of_the_report():
    recipe = load_recipe("ipet/ast-esc50")
    result = {
        "a": {"epochs": {"test": {"accuracy": [0.2, 0.8, 0.5]}, "validation": {"accuracy": [0.9, 0.1, 0.2]}}},
        "b": {"epochs": {"test": {"accuracy": [0.4, 0.6, 0.3]}, "validation": {"accuracy": [0.1, 0.1, 0.2]}}},
    }
    rules = summarize(recipe, {0: result})["accuracy"]
    assert {rule: round(values["mean"], 6) for rule, values in rules.items()} == {
        "best epoch on the test clips": 0.7,
        "best epoch in validation": 0.25,
        "last epoch": 0.4,
    }
    assert rules["last epoch"]["std_over_seeds"] is None
    assert rules["last epoch"]["std_over_folds"] == pytest.approx(np.std([0.5, 0.3], ddof=1))
