"""The metrics against scikit-learn, against their definitions in fractions, and against values worked out by hand."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from peft_audio.metrics import detection_error_tradeoff, equal_error_rate, mean_average_precision, min_dcf


hypothesis = pytest.importorskip("hypothesis", reason="the examples are drawn by hypothesis")
some = hypothesis.strategies
NAN, INFINITY = float("nan"), float("inf")
VERIFICATION = [equal_error_rate, min_dcf, detection_error_tradeoff]
each_verification_metric = pytest.mark.parametrize("metric", VERIFICATION, ids=lambda metric: metric.__name__)

# Worked out by hand: scores of target trials, of nontarget trials, the EER, and minDCF at p_target 0.01 and 0.5.
BY_HAND = {
    "perfect": ([3, 4], [1, 2], 0, 0, 0),
    "reversed": ([1, 2], [3, 4], 1, 1, 1),
    "one pair crossed": ([2, 4], [1, 3], 1 / 2, 1 / 2, 1 / 2),
    # From (false accepts, misses) = (1/2, 0) to (0, 1/2) in one step: they meet halfway.
    "a tie across the classes": ([2, 3], [1, 2], 1 / 4, 1 / 2, 1 / 2),
    "two of each tied": ([2, 2, 3], [1, 2, 2], 1 / 3, 2 / 3, 2 / 3),
    # From (1/4, 0) to (0, 1/3): they meet after 3/7 of the way.
    "a tie of unequal steps": ([2, 3, 4], [1, 1, 1, 2], 1 / 7, 1 / 3, 1 / 4),
    "a false accept costs 99 misses": ([1, 3], [0] * 99 + [2], 1 / 100, 1 / 2, 1 / 100),
}


def trials(targets, nontargets):
    return [*targets, *nontargets], [1] * len(targets) + [0] * len(nontargets)


def random_trials(seed, number=400, levels=None):
    """Target trials score higher by 1 on average; `levels` rounds, so that many are equal."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(number) % 3 == 0)
    scores = rng.normal(size=number) + labels
    return (scores if levels is None else np.round(scores * levels) / levels), labels


def examples(number):
    """The same examples in every run."""
    return hypothesis.settings(max_examples=number, derandomize=True, deadline=None, database=None)


@some.composite
def drawn_trials(draw):
    """Few distinct scores, so that ties within and across the classes are common."""
    scores = some.lists(some.integers(-3, 3), min_size=1, max_size=8)
    scores, labels = trials(draw(scores), draw(scores))
    hypothesis.assume(len(set(scores)) > 1)
    return scores, labels


def operating_points(scores, labels):
    """(false accept rate, miss rate) by counting, one threshold after the other, from accepting all to accepting none."""
    targets = [score for score, label in zip(scores, labels) if label]
    nontargets = [score for score, label in zip(scores, labels) if not label]
    return [
        (
            Fraction(sum(score >= threshold for score in nontargets), len(nontargets)),
            Fraction(sum(score < threshold for score in targets), len(targets)),
        )
        for threshold in [*sorted(set(scores)), INFINITY]
    ]


def crossing(points):
    """Where the line through the points crosses the diagonal, in fractions."""
    for (accept, miss), (next_accept, next_miss) in zip(points, points[1:]):
        if accept >= miss and next_accept <= next_miss:
            share = (accept - miss) / ((accept - miss) + (next_miss - next_accept))
            return accept + share * (next_accept - accept)
    raise AssertionError("the line must cross the diagonal")


# ---- verification ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets, nontargets, rate, rare_cost, even_cost", BY_HAND.values(), ids=BY_HAND)
def test_rates_and_costs_worked_out_by_hand(targets, nontargets, rate, rare_cost, even_cost):
    scores, labels = trials(targets, nontargets)
    assert equal_error_rate(scores, labels) == pytest.approx(rate, abs=1e-12)
    assert min_dcf(scores, labels) == pytest.approx(rare_cost, abs=1e-12)
    assert min_dcf(scores, labels, p_target=0.5) == pytest.approx(even_cost, abs=1e-12)


@pytest.mark.parametrize(
    "settings, cost",
    [
        # The points are (1, 0), (1/4, 0), (1/4, 1/2), (0, 1/2) and (0, 1).
        ({"p_target": 0.1}, 1 / 2),
        ({"p_target": 0.1, "c_miss": 10}, 0.9 / 4 / 0.9),
        ({"p_target": 0.1, "c_miss": 3}, (0.3 / 2) / 0.3),
        ({"p_target": 0.9}, 0.1 / 4 / 0.1),
        ({"p_target": 0.9, "c_fa": 18}, 0.9 / 2 / 0.9),
        ({"p_target": 0.9, "c_fa": 12}, 1.2 / 4 / 0.9),
    ],
    ids=str,
)
def test_the_cost_weighs_and_normalizes_as_nist_does(settings, cost):
    assert min_dcf(*trials([1, 3], [0, 0, 0, 2]), **settings) == pytest.approx(cost, abs=1e-12)


def test_the_curve_has_every_distinct_score_and_both_ends():
    false_accept_rates, miss_rates, thresholds = detection_error_tradeoff(*trials([2, 3], [1, 2]))
    assert false_accept_rates.tolist() == [1, 1 / 2, 0, 0]
    assert miss_rates.tolist() == [0, 0, 1 / 2, 1]
    assert thresholds.tolist() == [1, 2, 3, INFINITY]
    assert {array.dtype for array in (false_accept_rates, miss_rates, thresholds)} == {np.dtype("float64")}


@pytest.mark.parametrize("levels", [None, 2], ids=["distinct", "tied"])
def test_the_curve_is_that_of_scikit_learn(levels):
    sklearn = pytest.importorskip("sklearn.metrics", reason="the reference is scikit-learn's")
    scores, labels = random_trials(seed=0, levels=levels)
    false_accept_rates, miss_rates, thresholds = detection_error_tradeoff(scores, labels)
    accepted, hits, descending = sklearn.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(false_accept_rates, accepted[::-1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(miss_rates, 1 - hits[::-1], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(thresholds, descending[::-1])


@pytest.mark.parametrize("seed", range(5))
def test_the_rate_is_that_of_scipy_on_the_curve_of_scikit_learn(seed):
    sklearn = pytest.importorskip("sklearn.metrics", reason="the reference is scikit-learn's")
    optimize = pytest.importorskip("scipy.optimize", reason="the reference is scipy's")
    interpolate = pytest.importorskip("scipy.interpolate", reason="the reference is scipy's")
    scores, labels = random_trials(seed)
    accepted, hits, _ = sklearn.roc_curve(labels, scores, drop_intermediate=False)
    curve = interpolate.interp1d(accepted, hits)
    rate = optimize.brentq(lambda rate: 1 - rate - curve(rate), 0, 1, xtol=1e-12)
    assert 0.2 < rate < 0.4  # of two normal distributions one deviation apart: 0.309
    assert equal_error_rate(scores, labels) == pytest.approx(rate, abs=1e-9)


@examples(300)
@hypothesis.given(drawn_trials(), some.floats(0.01, 0.99), some.floats(0.1, 10), some.floats(0.1, 10))
def test_metrics_follow_their_definitions_in_fractions(drawn, p_target, c_miss, c_fa):
    points = operating_points(*drawn)
    misses, accepts = Fraction(c_miss) * Fraction(p_target), Fraction(c_fa) * (1 - Fraction(p_target))
    cost = min(misses * miss + accepts * accept for accept, miss in points) / min(misses, accepts)
    assert equal_error_rate(*drawn) == pytest.approx(float(crossing(points)), abs=1e-12)
    assert min_dcf(*drawn, p_target, c_miss, c_fa) == pytest.approx(float(cost), abs=1e-12)
    assert list(zip(*detection_error_tradeoff(*drawn)[:2])) == [(float(x), float(y)) for x, y in points]


@examples(200)
@hypothesis.given(drawn_trials(), some.lists(some.floats(-1e6, 1e6), min_size=7, max_size=7, unique=True))
def test_only_the_order_of_the_scores_counts(drawn, values):
    scores, labels = drawn
    increasing = dict(zip(range(-3, 4), sorted(values)))
    for metric in (equal_error_rate, min_dcf):
        assert metric([increasing[score] for score in scores], labels) == metric(scores, labels)


@examples(200)
@hypothesis.given(drawn_trials(), some.randoms(use_true_random=False))
def test_the_order_of_the_trials_does_not_count(drawn, random):
    shuffled = list(zip(*drawn))
    random.shuffle(shuffled)
    for metric in (equal_error_rate, min_dcf):
        assert metric(*zip(*shuffled)) == metric(*drawn)


@examples(200)
@hypothesis.given(drawn_trials(), some.floats(0.01, 0.99))
def test_swapped_classes_with_negated_scores_have_the_same_rate_and_the_mirrored_cost(drawn, p_target):
    scores, labels = drawn
    mirrored = [-score for score in scores], [1 - label for label in labels]
    assert equal_error_rate(*mirrored) == pytest.approx(equal_error_rate(*drawn), abs=1e-12)
    assert min_dcf(*mirrored, 1 - p_target) == pytest.approx(min_dcf(*drawn, p_target), abs=1e-12)


@examples(200)
@hypothesis.given(drawn_trials())
def test_negated_scores_turn_the_rate_around(drawn):
    scores, labels = drawn
    assert equal_error_rate([-score for score in scores], labels) == pytest.approx(1 - equal_error_rate(*drawn))


@pytest.mark.parametrize(
    "convert",
    [
        list,
        tuple,
        np.float16,
        np.int64,
        torch.tensor,
        lambda values: torch.tensor(values, dtype=torch.bfloat16, requires_grad=True),
        lambda values: [torch.tensor(value) for value in values],
        lambda values: np.array(values)[::-1][::-1],
    ],
    ids=["list", "tuple", "float16", "int64", "tensor", "bfloat16 with a gradient", "list of tensors", "view"],
)
@each_verification_metric
def test_scores_come_as_arrays_lists_and_tensors(metric, convert):
    scores, labels = trials([2, 3, 5], [1, 2, 4, 0])
    np.testing.assert_array_equal(metric(convert(scores), labels), metric(np.array(scores, float), np.array(labels)))


@pytest.mark.parametrize("convert", [np.bool_, np.float32, torch.tensor, lambda values: torch.tensor(values) == 1])
@each_verification_metric
def test_labels_come_as_booleans_floats_and_tensors(metric, convert):
    scores, labels = trials([2, 3, 5], [1, 2, 4, 0])
    np.testing.assert_array_equal(metric(scores, convert(labels)), metric(scores, labels))


@each_verification_metric
def test_inputs_are_left_as_they_were(metric):
    scores, labels = random_trials(seed=1)
    kept = scores.copy(), labels.copy()
    metric(scores, labels)
    np.testing.assert_array_equal((scores, labels), kept)


def test_results_are_python_floats():
    scores, labels = random_trials(seed=2)
    results = equal_error_rate(scores, labels), min_dcf(scores, labels), mean_average_precision([[1], [2]], [[0], [1]])
    assert [type(result) for result in results] == [float] * 3


BAD_TRIALS = {
    "other lengths": ([1, 2, 3], [0, 1], "`labels` must have the shape of `scores`, (3,), got (2,)"),
    "no trials": ([], [], "`scores` must be numbers of shape (trials,), at least one each, got shape (0,)"),
    "scores of two classes": (
        [[1, 2], [3, 4]],
        [0, 1],
        "`scores` must be numbers of shape (trials,), got shape (2, 2)",
    ),
    "a column of labels": ([1, 2], [[0], [1]], "`labels` must be numbers of shape (trials,), got shape (2, 1)"),
    "a single number": (1.0, [1], "`scores` must be numbers of shape (trials,), got shape ()"),
    "rows of other lengths": ([[1], [2, 3]], [0, 1], "`scores` must be numbers of shape (trials,), got list"),
    "text": (["1", "2"], [0, 1], "`scores` must be numbers of shape (trials,), got dtype <U1"),
    "nothing": (None, [0, 1], "`scores` must be numbers of shape (trials,), got dtype object"),
    "a missing score": ([1, None], [0, 1], "`scores` must be numbers of shape (trials,), got dtype object"),
    "complex scores": ([1j, 2], [0, 1], "`scores` must be numbers of shape (trials,), got dtype complex128"),
    "NaN": ([1, 2, NAN, NAN], [0, 1, 0, 1], "`scores` must be finite, got scores[2] = nan (2 in all)"),
    "infinity": ([1, -INFINITY], [0, 1], "`scores` must be finite, got scores[1] = -inf (1 in all)"),
    "labels of -1 and 1": ([1, 2], [-1, 1], "`labels` must be 0 or 1, got labels[0] = -1 (1 in all)"),
    "labels between": ([1, 2], [0.5, 1], "`labels` must be 0 or 1, got labels[0] = 0.5 (1 in all)"),
    "an unknown label": ([1, 2, 3], [0, 1, NAN], "`labels` must be 0 or 1, got labels[2] = nan (1 in all)"),
    "target trials only": ([1, 2], [1, 1], "`labels` must hold both 1 and 0, got 2 times 1: add nontarget trials"),
    "nontarget trials only": ([1, 2], [0, 0], "`labels` must hold both 1 and 0, got 2 times 0: add target trials"),
    "constant scores": ([0.5] * 3, [0, 1, 1], "`scores` must differ between trials, got 0.5 for all 3"),
    "zeros of both signs": ([0.0, -0.0], [0, 1], "`scores` must differ between trials, got 0.0 for all 2"),
}


@pytest.mark.parametrize("scores, labels, message", BAD_TRIALS.values(), ids=BAD_TRIALS)
@each_verification_metric
def test_bad_trials_are_refused(metric, scores, labels, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        metric(scores, labels)


@pytest.mark.parametrize("name", ["p_target", "c_miss", "c_fa"])
@pytest.mark.parametrize("value", [0, -1, NAN, INFINITY, "0.5", None, True, [0.5]], ids=str)
def test_bad_settings_of_the_cost_are_refused(name, value):
    limit = 1 if name == "p_target" else "inf"
    with pytest.raises(ValueError, match=f"^`{name}` must be a number above 0 and below {limit}, got ") as refusal:
        min_dcf([1, 2], [0, 1], **{name: value})
    assert repr(value) in str(refusal.value)


def test_a_target_probability_of_one_is_refused():
    with pytest.raises(ValueError, match="^`p_target` must be a number above 0 and below 1, got 1"):
        min_dcf([1, 2], [0, 1], p_target=1)


# ---- tagging ---------------------------------------------------------------------------------------------------------


@some.composite
def drawn_tags(draw):
    """Scores with ties and targets, some unknown, of which at least one is positive."""
    shape = draw(some.integers(1, 7)), draw(some.integers(1, 4))

    def table(values):
        return np.array(draw(some.lists(values, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))).reshape(
            shape
        )

    scores, targets = table(some.integers(-2, 2)), table(some.sampled_from([0.0, 1.0, NAN]))
    hypothesis.assume((targets == 1).any())
    return scores, targets


def precisions_at_hits(scores, targets):
    """Average precision of one label by its definition: the mean over positives of the precision at their score."""
    pairs = [(score, target) for score, target in zip(scores.tolist(), targets.tolist()) if target == target]
    found = [[target for score, target in pairs if score >= hit] for hit, is_hit in pairs if is_hit]
    return sum((Fraction(int(sum(hits)), len(hits)) for hits in found), Fraction(0)) / len(found)


@pytest.mark.parametrize(
    "scores, targets, precision",
    [
        ([4, 3, 2, 1], [1, 0, 1, 0], (1 + 2 / 3) / 2),
        ([4, 3, 2, 1], [0, 0, 0, 1], 1 / 4),
        ([4, 3, 3, 1], [0, 1, 0, 1], (1 / 3 + 2 / 4) / 2),
        ([4, 3, 2, 1], [1, NAN, 1, 0], 1),
        ([5, 5, 5, 5], [1, 0, 0, 0], 1 / 4),
        ([4, 3, 2, 1], [1, 1, 1, 1], 1),
    ],
    ids=["alternating", "last", "tied", "unknown between", "constant", "all positive"],
)
def test_average_precision_worked_out_by_hand(scores, targets, precision):
    result = mean_average_precision(np.array(scores)[:, None], np.array(targets)[:, None])
    assert result == pytest.approx(precision, abs=1e-12)


def test_labels_count_the_same_and_those_without_a_positive_not_at_all():
    scores = np.tile([[4], [3], [2], [1]], 4)
    targets = np.array([[1, 0, 0, NAN], [1, 0, 0, 0], [1, 0, 0, NAN], [0, 1, 0, NAN]])
    assert mean_average_precision(scores, targets) == pytest.approx((1 + 1 / 4) / 2, abs=1e-12)


@pytest.mark.parametrize("levels", [None, 3], ids=["distinct", "tied"])
def test_the_mean_is_that_of_scikit_learn(levels):
    sklearn = pytest.importorskip("sklearn.metrics", reason="the reference is scikit-learn's")
    rng = np.random.default_rng(3)
    targets = rng.random((60, 20)) < np.linspace(0.05, 0.9, 20)
    scores = rng.normal(size=targets.shape) + targets
    scores = scores if levels is None else np.round(scores * levels)
    expected = sklearn.average_precision_score(targets, scores, average="macro")
    assert mean_average_precision(scores, targets) == pytest.approx(expected, abs=1e-12)


@examples(300)
@hypothesis.given(drawn_tags())
def test_mean_average_precision_follows_its_definition_in_fractions(drawn):
    scores, targets = drawn
    precisions = [precisions_at_hits(*column) for column in zip(scores.T, targets.T) if (column[1] == 1).any()]
    assert mean_average_precision(scores, targets) == pytest.approx(
        float(sum(precisions) / len(precisions)), abs=1e-12
    )


@pytest.mark.parametrize(
    "convert", [np.ndarray.tolist, torch.from_numpy, lambda table: torch.from_numpy(table).half()]
)
def test_tables_come_as_lists_and_tensors(convert):
    scores, targets = np.array([[3.0, 1], [2, 2], [1, 3]]), np.array([[1, 0], [0, NAN], [1, 1]])
    assert mean_average_precision(convert(scores), convert(targets)) == pytest.approx((5 / 6 + 1) / 2, abs=1e-12)


BAD_TAGS = {
    "a single label": ([1, 2], [0, 1], "`scores` must be numbers of shape (clips, labels), got shape (2,)"),
    "class indices": ([[1, 2], [3, 4]], [0, 1], "`targets` must be numbers of shape (clips, labels), got shape (2,)"),
    "other shapes": ([[1, 2]], [[0], [1]], "`targets` must have the shape of `scores`, (1, 2), got (2, 1)"),
    "no clips": (
        np.empty((0, 3)),
        np.empty((0, 3)),
        "`scores` must be numbers of shape (clips, labels), at least one",
    ),
    "no labels": (
        np.empty((3, 0)),
        np.empty((3, 0)),
        "`scores` must be numbers of shape (clips, labels), at least one",
    ),
    "rows of other lengths": (
        [[1], [1, 2]],
        [[0], [1, 0]],
        "`scores` must be numbers of shape (clips, labels), got list",
    ),
    "a missing target": (
        [[1], [2]],
        [[None], [1]],
        "`targets` must be numbers of shape (clips, labels), got dtype obj",
    ),
    "NaN": ([[1, 2], [3, NAN]], [[0, 1], [1, 0]], "`scores` must be finite, got scores[1, 1] = nan (1 in all)"),
    "infinity": ([[1, INFINITY]], [[0, 1]], "`scores` must be finite, got scores[0, 1] = inf (1 in all)"),
    "NaN where unknown": ([[1, NAN]], [[1, NAN]], "`scores` must be finite, got scores[0, 1] = nan (1 in all)"),
    "targets of -100": (
        [[1], [2]],
        [[-100], [1]],
        "`targets` must be 0 or 1, got targets[0, 0] = -100 (1 in all): write NaN",
    ),
    "counts": ([[1], [2]], [[2], [1]], "`targets` must be 0 or 1, got targets[0, 0] = 2 (1 in all)"),
    "no positive": ([[1, 2], [3, 4]], [[0, NAN], [0, 0]], "`targets` must have a positive target, got none"),
}


@pytest.mark.parametrize("scores, targets, message", BAD_TAGS.values(), ids=BAD_TAGS)
def test_bad_tags_are_refused(scores, targets, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        mean_average_precision(scores, targets)
