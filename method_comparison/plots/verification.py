"""Speaker verification: how the scores of trials lie, and which errors which threshold makes (the DET curve)."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.stats import norm

from peft_audio.metrics import detection_error_tradeoff, equal_error_rate, min_dcf


MOST_BINS = 60
BLUE, RED, BLACK = "#0072B2", "#D55E00", "#000000"
TICKS = (1e-5, 1e-4, 0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.995, 0.999)


def plot_verification(scores: ArrayLike, labels: ArrayLike, p_target: float = 0.01) -> Figure:
    """Draws the histogram of the scores, and the DET curve (Martin et al. 1997) on normal-deviate axes.

    The histogram has a line at the threshold where the miss rate and the false accept rate are closest; the curve has
    the points of equal error rate and of the lowest detection cost. Rates of 0 lie at infinity on these axes and are
    drawn on their border.

    Args:
        scores: `(trials,)`, higher where the voices are more alike.
        labels: `(trials,)`, 1 where the speaker is the same, 0 where not.
        p_target: the probability of a target trial in the detection cost.

    Raises:
        ValueError: where `peft_audio.metrics.detection_error_tradeoff` and `min_dcf` raise it.
    """
    false_accepts, misses, thresholds = detection_error_tradeoff(scores, labels)
    error_rate, cost = equal_error_rate(scores, labels), min_dcf(scores, labels, p_target)
    equal = np.abs(misses - false_accepts).argmin()
    cheapest = (p_target * misses + (1 - p_target) * false_accepts).argmin()
    figure = Figure(figsize=(12, 6), layout="constrained")
    histogram, curve = figure.subplots(1, 2)
    threshold = f"threshold of equal errors, {thresholds[equal]:.3f}"
    draw_histogram(histogram, np.asarray(scores, dtype=np.float64), np.asarray(labels) == 1)
    histogram.axvline(thresholds[equal], color=BLACK, linestyle="--", label=threshold)
    points = {
        f"equal error rate {100 * error_rate:.2f} %": (error_rate, error_rate, "o"),
        f"minDCF {cost:.3f} (target probability {p_target:g})": (false_accepts[cheapest], misses[cheapest], "s"),
    }
    draw_tradeoff(curve, false_accepts, misses, points)
    for axes in (histogram, curve):
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
        axes.grid(alpha=0.3)
    return figure


def draw_histogram(axes, scores: np.ndarray, same: np.ndarray) -> None:
    edges = np.histogram_bin_edges(scores, min(MOST_BINS, 1 + int(np.sqrt(scores.size))))
    for kind, color, title in ((same, BLUE, "same speaker"), (~same, RED, "different speakers")):
        density, _ = np.histogram(scores[kind], edges, density=True)
        axes.stairs(density, edges, fill=True, color=color, alpha=0.5, label=f"{title} ({kind.sum():,} trials)")
    axes.set(xlabel="score", ylabel="density")


def draw_tradeoff(axes, false_accepts: np.ndarray, misses: np.ndarray, points: dict[str, tuple]) -> None:
    """The curve, and `points` on it: by title, false accept rate, miss rate and marker."""
    rates = np.concatenate([false_accepts, misses])
    low = min(0.001, rates[rates > 0].min() / 2)
    # Half the axis is of rates that no one would use; the points have to be on it.
    high = min(1 - low, max(0.5, *(1.2 * rate for point in points.values() for rate in point[:2])))
    axes.set_xscale("function", functions=(norm.ppf, norm.cdf))
    axes.set_yscale("function", functions=(norm.ppf, norm.cdf))
    ticks = [tick for tick in TICKS if low <= tick <= high]
    percents = [f"{100 * tick:g}" for tick in ticks]
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="false accept rate, %", ylabel="miss rate, %")
    axes.set_xticks(ticks, percents)
    axes.set_yticks(ticks, percents)
    axes.minorticks_off()
    axes.set_box_aspect(1)
    within = (low, 1 - low)
    axes.plot(np.clip(false_accepts, *within), np.clip(misses, *within), color=BLACK)
    for title, (false_accept, miss, marker) in points.items():
        at = np.clip([false_accept, miss], *within)
        axes.plot(*at[:, None], marker=marker, linestyle="none", label=title, clip_on=False, zorder=3)
