"""The modules of `metrics/` in Hugging Face evaluate: loaded by their folder, without network."""

import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from evaluate import config

from peft_audio.metrics import equal_error_rate, mean_average_precision, min_dcf


FUNCTIONS = {
    "equal_error_rate": equal_error_rate,
    "min_dcf": min_dcf,
    "mean_average_precision": mean_average_precision,
}
NAN = float("nan")
# In single precision the values that differ by 1e-12 are ties, and the results are others.
SCORES = [0.3, 0.3 + 1e-12, 0.15, 0.1, 0.5, 0.2]
LABELS = [0, 1, 1, 0, 1, 0]
INPUTS = {
    "equal_error_rate": ([0.3, 0.3 + 1e-12, 0.9, 0.1, 0.5, 0.2], [0, 1, 0, 0, 1, 0]),
    "min_dcf": (SCORES, LABELS),
    "mean_average_precision": (
        [[0.9, 0.1], [0.2 + 1e-12, 0.4], [0.2, 0.3], [0.1, 0.6]],
        [[0, 1], [1, NAN], [0, 0], [1, 1]],
    ),
}
each_metric = pytest.mark.parametrize("name", FUNCTIONS)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Loads the module of that name as a user does in the root of the project, with caches of its own."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "HF_MODULES_CACHE", cache / "modules")
        patch.setattr(sys, "path", sys.path.copy())
        patch.chdir(Path(__file__).resolve().parents[1])
        yield lambda name, **options: evaluate.load(f"metrics/{name}", cache_dir=str(cache / "data"), **options)


@each_metric
@pytest.mark.parametrize("convert", [list, np.array, torch.tensor], ids=["lists", "arrays", "tensors"])
def test_a_module_computes_what_its_function_returns(load, name, convert):
    scores, references = INPUTS[name]
    result = load(name).compute(
        prediction_scores=torch.tensor(scores, dtype=torch.float64) if convert is torch.tensor else convert(scores),
        references=convert(references),
    )
    assert result == {name: FUNCTIONS[name](scores, references)}
    assert result != {name: FUNCTIONS[name](np.float32(scores), references)}


@each_metric
@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_batches_and_single_examples_add_up(load, name, keep_in_memory):
    scores, references = INPUTS[name]
    metric = load(name, keep_in_memory=keep_in_memory)
    for _ in range(2):  # the second time nothing of the first is left
        metric.add_batch(prediction_scores=scores[:2], references=references[:2])
        metric.add_batch(prediction_scores=np.array(scores[2:-1]), references=torch.tensor(references[2:-1]))
        metric.add(prediction_scores=scores[-1], references=references[-1])
        assert metric.compute() == {name: FUNCTIONS[name](scores, references)}


def test_settings_of_the_cost_are_passed_on(load):
    scores, references = [1, 3, 0, 0, 0, 2], [1, 1, 0, 0, 0, 0]
    costs = [
        load("min_dcf").compute(prediction_scores=scores, references=references, **settings)["min_dcf"]
        for settings in ({}, {"p_target": 0.9}, {"p_target": 0.9, "c_fa": 18}, {"c_miss": 396})
    ]
    # Of the points (1/4 accepted, 0 missed) and (0, 1/2), whichever costs less, over the lower weight.
    assert costs == pytest.approx([1 / 2, 1 / 4, 1 / 2, 1 / 4], abs=1e-12)


def test_modules_of_the_same_inputs_combine(load):
    both = evaluate.combine([load("equal_error_rate"), load("min_dcf")])
    both.add_batch(prediction_scores=SCORES, references=LABELS)
    assert both.compute() == {
        "equal_error_rate": equal_error_rate(SCORES, LABELS),
        "min_dcf": min_dcf(SCORES, LABELS),
    }


@pytest.mark.parametrize(
    "name, scores, references, message",
    [
        ("equal_error_rate", [1, 2], [0, 0.7], r"`labels` must be 0 or 1, got labels\[1\] = 0.7"),
        ("equal_error_rate", [1, NAN], [0, 1], r"`scores` must be finite, got scores\[1\] = nan"),
        ("min_dcf", [1, 2], [1, 1], "`labels` must hold both 1 and 0"),
        ("mean_average_precision", [[1, 2], [1]], [[0, 1], [1]], "`scores` must be numbers of shape"),
        ("mean_average_precision", [[1], [2]], [[0.7], [1]], r"`targets` must be 0 or 1, got targets\[0, 0\] = 0.7"),
        ("mean_average_precision", [[1], [2]], [[0], [0]], "`targets` must have a positive target"),
    ],
)
def test_bad_inputs_are_refused_and_leave_the_module_usable(load, name, scores, references, message):
    metric = load(name, keep_in_memory=True)
    with pytest.raises(ValueError, match=message):
        metric.compute(prediction_scores=scores, references=references)
    scores, references = INPUTS[name]
    result = metric.compute(prediction_scores=scores, references=references)
    assert result == {name: FUNCTIONS[name](scores, references)}


@each_metric
def test_the_help_of_a_module_names_its_inputs_and_its_result(load, name):
    metric = load(name)
    assert set(metric.features) == {"prediction_scores", "references"}
    for word in ("prediction_scores:", "references:", f"{name}:"):
        assert word in metric.inputs_description
    assert metric.description
