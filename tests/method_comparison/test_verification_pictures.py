"""Score histograms and DET curves, against counts of the trials."""

from statistics import NormalDist

import numpy as np
import pytest
from drawn import figure_of, legend_of, lines_of, ticks_of

from peft_audio.trainer.verification_plot import plot_verification


def trials(count=300, seed=3):
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.4).astype(int)
    return np.round(rng.normal(0.3 + 0.25 * labels, 0.15), 2), labels  # rounded, so that scores are tied


def rates_at(scores, labels, threshold):
    """False accepts and misses where trials are accepted from that score up, counted one by one."""
    false_accepts = sum(score >= threshold for score, label in zip(scores, labels) if label == 0)
    misses = sum(score < threshold for score, label in zip(scores, labels) if label == 1)
    return false_accepts / (labels == 0).sum(), misses / (labels == 1).sum()


def test_the_histogram_counts_the_scores_of_both_kinds_of_trials():
    scores, labels = trials()
    axes = plot_verification(scores, labels).axes[0]
    steps = {patch.get_label(): patch.get_data() for patch in axes.patches}
    same, different = int(labels.sum()), int((1 - labels).sum())
    assert list(steps) == [f"same speaker ({same} trials)", f"different speakers ({different} trials)"]
    for (density, edges, _), label in zip(steps.values(), (1, 0)):
        assert (edges[0], edges[-1]) == (scores.min(), scores.max())
        assert (density * np.diff(edges)).sum() == pytest.approx(1)
        index = len(density) // 2
        inside = sum(edges[index] <= score < edges[index + 1] for score in scores[labels == label])
        share = density[index] * (edges[index + 1] - edges[index])
        assert inside > 0 and share * (labels == label).sum() == pytest.approx(inside)


def test_the_line_in_the_histogram_is_where_both_errors_are_closest():
    scores, labels = trials()
    axes = plot_verification(scores, labels).axes[0]
    (line,) = axes.get_lines()
    threshold = line.get_xdata()[0]
    gap = {value: abs(np.subtract(*rates_at(scores, labels, value))) for value in np.unique(scores)}
    assert gap[threshold] == min(gap.values())
    assert line.get_label() == f"threshold of equal errors, {threshold:.3f}"
    assert line.get_label() in legend_of(axes.get_legend())


def test_the_curve_has_the_rates_of_every_threshold():
    scores, labels = trials()
    axes = plot_verification(scores, labels).axes[1]
    rates = np.array([rates_at(scores, labels, threshold) for threshold in [*np.unique(scores), np.inf]])
    low, high = axes.get_xlim()
    assert low == pytest.approx(0.001) and high < 1
    curve = axes.get_lines()[0].get_xydata()
    assert curve == pytest.approx(np.clip(rates, low, 1 - low))
    assert ((rates > low) & (rates < 1 - low)).all(axis=1).sum() > 20


@pytest.mark.parametrize("p_target", [0.01, 0.5])
def test_the_points_on_the_curve_are_those_of_equal_errors_and_of_the_lowest_cost(p_target):
    scores, labels = trials()
    axes = plot_verification(scores, labels, p_target).axes[1]
    rates = np.array([rates_at(scores, labels, threshold) for threshold in [*np.unique(scores), np.inf]])
    costs = (1 - p_target) * rates[:, 0] + p_target * rates[:, 1]
    _, equal, cheapest = axes.get_lines()
    ((x, y),) = equal.get_xydata()
    assert x == y
    above, below = rates[rates[:, 1] <= rates[:, 0]][-1], rates[rates[:, 1] >= rates[:, 0]][0]
    assert below[0] <= x <= above[0] and above[1] <= y <= below[1]
    assert cheapest.get_xydata()[0] == pytest.approx(np.clip(rates[costs.argmin()], axes.get_xlim()[0], None))
    titles = [
        f"equal error rate {100 * x:.2f} %",
        f"minDCF {costs.min() / p_target:.3f} (target probability {p_target})",
    ]
    assert legend_of(axes.get_legend()) == titles
    low, high = axes.get_ylim()
    assert all(low <= value <= high for value in (x, *cheapest.get_xydata()[0]))


def test_the_axes_of_the_curve_are_normal_deviates():
    axes = plot_verification(*trials()).axes[1]
    rates = [0.005, 0.02, 0.2, 0.4]
    places = axes.transScale.transform([(rate, rate) for rate in rates])
    assert places == pytest.approx(np.array([[NormalDist().inv_cdf(rate)] * 2 for rate in rates]))
    for axis in (axes.xaxis, axes.yaxis):
        shown = dict(zip(ticks_of(axis), axis.get_ticklocs()))
        assert shown["0.5"] == 0.005 and shown["20"] == 0.2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("scores", "labels"), [([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]), ([0.1, 0.9], [1, 0])])
def test_the_curve_of_the_best_and_the_worst_scores_can_be_written(tmp_path, scores, labels):
    figure = plot_verification(scores, labels)
    figure.savefig(tmp_path / "det.png")
    low, high = figure.axes[1].get_xlim()
    points = np.concatenate([line.get_xydata() for line in figure.axes[1].get_lines()])
    assert 0 < low < high < 1 and ((points >= low) & (points <= 1 - low)).all()


def test_trials_are_read_from_a_file(tmp_path):
    scores, labels = trials()
    path = tmp_path / "trials.csv"
    path.write_text("score,label\n" + "".join(f"{score},{label}\n" for score, label in zip(scores, labels)))
    read, direct = figure_of("verification", path, "--p_target", "0.05"), plot_verification(scores, labels, 0.05)
    for first, second in zip(read.axes, direct.axes):
        assert lines_of(first) == lines_of(second)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (([0.1, 0.2], [1, 1]), "`labels` must hold both 1 and 0"),
        (([0.1, np.nan], [1, 0]), "`scores` must be finite"),
        (([0.1, 0.2], [1, 0], 1.5), "`p_target` must be a number above 0 and below 1"),
    ],
)
def test_unusable_trials_are_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        plot_verification(*arguments)
