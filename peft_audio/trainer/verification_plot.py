"""A picture of the errors of speaker verification: the scores of both kinds of trials, and the DET curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..metrics import detection_error_tradeoff, equal_error_rate, min_dcf


if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, RED, BLACK = "#0072B2", "#D55E00", "#000000"
TICKS = (1e-5, 1e-4, 0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.995, 0.999)


def plot_verification(scores: Sequence[float], labels: Sequence[int], p_target: float = 0.01) -> Figure:
    """Draw the histogram of the scores, and the DET curve (Martin et al. 1997) on normal-deviate axes.

    `scores` `(trials,)` are higher where voices are more alike, `labels` `(trials,)` are 1 for the same speaker, else 0,
    `p_target` is the probability of a target trial. Rates of 0 lie at infinity on these axes and are drawn on their
    border. Raises `ValueError` as `peft_audio.metrics.min_dcf` does.
    """
    false_accepts, misses, thresholds = detection_error_tradeoff(scores, labels)
    from matplotlib.figure import Figure

    error_rate, cost = equal_error_rate(scores, labels), min_dcf(scores, labels, p_target)
    threshold = thresholds[np.abs(misses - false_accepts).argmin()]
    cheapest = (p_target * misses + (1 - p_target) * false_accepts).argmin()
    figure = Figure(figsize=(12, 6), layout="constrained")
    histogram, curve = figure.subplots(1, 2)
    _draw_histogram(histogram, np.asarray(scores, dtype=np.float64), np.asarray(labels) == 1)
    histogram.axvline(threshold, color=BLACK, linestyle="--", label=f"threshold of equal errors, {threshold:.3f}")
    points = {
        f"equal error rate {100 * error_rate:.2f} %": (error_rate, error_rate, "o"),
        f"minDCF {cost:.3f} (target probability {p_target:g})": (false_accepts[cheapest], misses[cheapest], "s"),
    }
    _draw_tradeoff(curve, false_accepts, misses, points)
    for axes in (histogram, curve):
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
        axes.grid(alpha=0.3)
    return figure


def _draw_histogram(axes: Any, scores: np.ndarray, same: np.ndarray) -> None:
    edges = np.histogram_bin_edges(scores, min(60, 1 + int(np.sqrt(scores.size))))
    for kind, color, title in ((same, BLUE, "same speaker"), (~same, RED, "different speakers")):
        density, _ = np.histogram(scores[kind], edges, density=True)
        axes.stairs(density, edges, fill=True, color=color, alpha=0.5, label=f"{title} ({kind.sum():,} trials)")
    axes.set(xlabel="score", ylabel="density")


def _draw_tradeoff(
    axes: Any, false_accepts: np.ndarray, misses: np.ndarray, points: dict[str, tuple[float, float, str]]
) -> None:
    """Draw the curve, and `points` on it: by title, false accept rate, miss rate and marker."""
    from scipy.stats import norm

    rates = np.concatenate([false_accepts, misses])
    low = min(0.001, rates[rates > 0].min() / 2)
    # Half the axis is of rates that no one would use; the points have to be on it.
    high = min(1 - low, max(0.5, *(1.2 * rate for point in points.values() for rate in point[:2])))
    axes.set_xscale("function", functions=(norm.ppf, norm.cdf))
    axes.set_yscale("function", functions=(norm.ppf, norm.cdf))
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="false accept rate, %", ylabel="miss rate, %")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, labels=[f"{100 * tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_box_aspect(1)
    axes.plot(np.clip(false_accepts, low, 1 - low), np.clip(misses, low, 1 - low), color=BLACK)
    for title, (false_accept, miss, marker) in points.items():
        at = np.clip([false_accept, miss], low, 1 - low)
        axes.plot(*at[:, None], marker=marker, linestyle="none", label=title, clip_on=False, zorder=3)
