"""The rules that choose an epoch, and means over folds and seeds, against numbers worked out by hand."""

import math
import statistics

import pytest
from training.aggregation import (
    Score,
    best_epoch_by_test,
    best_epoch_by_validation,
    epoch_metrics,
    last_epoch,
    mean_and_std,
    over_seeds,
)


TEST = {"1": [0.5, 0.9, 0.6], "2": [0.7, 0.4, 0.8], "3": [0.6, 0.5, 0.7]}  # means: 0.6, 0.6, 0.7
VALIDATION = {"3": [0.1, 0.2, 0.1], "1": [0.3, 0.2, 0.3], "2": [0.1, 0.2, 0.3]}


def test_the_best_epoch_of_the_mean_counts_in_all_folds():
    score = best_epoch_by_test(TEST)
    assert score.values == {"1": 0.6, "2": 0.8, "3": 0.7} and score.epochs == {"1": 3, "2": 3, "3": 3}
    assert score.mean == pytest.approx(0.7) and score.std == pytest.approx(0.1)


def test_lower_is_better_where_it_is_said_and_the_first_of_equals_counts():
    errors = {"1": [0.5, 0.25, 0.5, 0.25], "2": [0.5, 0.25, 0.0, 0.25]}
    assert set(best_epoch_by_test(errors, higher_is_better=False).epochs.values()) == {2}
    assert set(best_epoch_by_test(errors).epochs.values()) == {1}
    assert best_epoch_by_validation(errors, errors, higher_is_better=False).epochs == {"1": 2, "2": 3}


def test_the_last_epoch_counts_whatever_it_is():
    score = last_epoch({"1": [0.9, 0.1], "2": [0.8, 0.3]})
    assert score.values == {"1": 0.1, "2": 0.3} and score.epochs == {"1": 2, "2": 2}


def test_validation_chooses_an_epoch_for_each_fold_by_name_and_test_is_reported():
    score = best_epoch_by_validation(VALIDATION, TEST)
    assert score.epochs == {"1": 1, "2": 3, "3": 2} and score.values == {"1": 0.5, "2": 0.8, "3": 0.5}


def test_the_deviation_is_that_of_a_sample():
    values = [0.5, 0.8, 0.7, 0.1]
    assert mean_and_std(values) == pytest.approx((statistics.mean(values), statistics.stdev(values)))
    mean, std = mean_and_std([0.5])
    assert mean == 0.5 and math.isnan(std)
    with pytest.raises(ValueError, match="no values"):
        mean_and_std([])


def test_over_seeds_the_means_over_folds_vary():
    scores = {seed: last_epoch({"a": [value], "b": [value + 0.2]}) for seed, value in ((0, 0.1), (1, 0.3), (2, 0.5))}
    assert over_seeds(scores) == pytest.approx((0.4, 0.2))
    scores[2] = Score({"a": 0.5}, {"a": 1})
    with pytest.raises(ValueError, match="Seed 2 has the folds a, the first seed has a, b"):
        over_seeds(scores)


@pytest.mark.parametrize("rule", [best_epoch_by_test, last_epoch, lambda test: best_epoch_by_validation(test, test)])
@pytest.mark.parametrize(
    "test, message",
    [
        ({}, "has no folds"),
        ({"1": [], "2": []}, "no fold has an epoch"),
        ({"1": [0.1, 0.2], "2": [0.1]}, "fold 1 has 2, fold 2 has 1"),
        ({"1": [0.1, 0.2], "2": [0.1, math.nan]}, "fold 2, epoch 2 is nan"),
    ],
)
def test_incomplete_metrics_are_refused(rule, test, message):
    with pytest.raises(ValueError, match=message):
        rule(test)


def test_validation_and_test_must_match():
    with pytest.raises(ValueError, match="validation has the folds 1, test has 1, 2, 3"):
        best_epoch_by_validation({"1": [0.1, 0.2, 0.3]}, TEST)
    with pytest.raises(ValueError, match="validation has 2 epochs, test has 3"):
        best_epoch_by_validation({fold: [0.1, 0.2] for fold in TEST}, TEST)


def test_metrics_are_read_from_a_log_the_first_of_each_epoch():
    log = [
        {"epoch": 1.0, "step": 3, "loss": 2.0},
        {"epoch": 1.0, "step": 3, "eval_accuracy": 0.25, "eval_loss": 2.0},
        {"epoch": 2.0, "step": 6, "eval_accuracy": 0.5, "eval_loss": 1.0},
        {"epoch": 2.0, "step": 6, "train_runtime": 1.0},
        {"epoch": 2.0, "step": 6, "eval_accuracy": 0.75, "eval_loss": 0.5},
    ]
    assert epoch_metrics(log, "eval_accuracy") == [0.25, 0.5]
    with pytest.raises(ValueError, match="no 'eval_map'; it has eval_accuracy, eval_loss"):
        epoch_metrics(log, "eval_map")
    with pytest.raises(ValueError, match="not computed after each epoch, but at 2"):
        epoch_metrics(log[2:], "eval_accuracy")
    with pytest.raises(ValueError, match="but at 0.5, 1"):
        epoch_metrics([{"epoch": 0.5, "eval_accuracy": 0.1}, *log[:2]], "eval_accuracy")
