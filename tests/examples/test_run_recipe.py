"""Recipes on stand-ins: made-up copies of the data sets, and tiny models in the layouts of the published ones."""

import dataclasses
import json

import numpy as np
import pytest
import run_recipe
import soundfile
import torch
from experiments import parts, runs
from experiments.codes import codes_of
from experiments.recipe import RecipeError, load_recipe, recipe_names
from experiments.report import summarize
from experiments.verification import score_trials
from layouts import LAYOUTS
from sounds import save_model
from ssast import make_ssast
from tiny import make
from transformers import DeiTForImageClassification

from peft_audio import AutoPeftModelForAudioClassification, use_mean_token_pooling


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
    result = runs.run(recipe, part, 0, setting(models, data, tmp_path, recipe))
    assert len(steps) == 1 and np.isfinite(steps[0])
    assert 0 <= result["epochs"]["test"][recipe.metric][0] <= 1
    summary = summarize(recipe, {0: {part.name: result}})
    assert summary[recipe.metric]["last epoch"]["mean"] == result["epochs"]["test"][recipe.metric][0]
