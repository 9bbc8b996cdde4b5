"""A metric over the number of parameters that train, one curve a method, as figure 3 of the IPET paper."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from esc10_rows import TITLES as ROW_TITLES
from matplotlib.figure import Figure  # with no pyplot there is no display to look for, and no state to clean up

from .metrics import axis_of


TITLES = ROW_TITLES | {"time_freq_conv": "LoAA", "partial": "upper half of the layers", "bitfit": "BitFit"}

# A color for each family (they differ for color-blind readers too), a marker and a line for each of its members.
BLUE, SKY, GREEN, ORANGE = "#0072B2", "#56B4E9", "#009E73", "#E69F00"
RED, PURPLE, BLACK, GRAY = "#D55E00", "#CC79A7", "#000000", "#777777"
STYLES = {
    "ipet": (BLUE, "o", "-"),
    "parallel_mlp": (BLUE, "s", "--"),
    "embedding_prompt": (SKY, "D", "-"),
    "input_prompt": (SKY, "v", "--"),
    "aat_m": (ORANGE, "^", "-"),
    "aat_ms": (ORANGE, "s", "--"),
    "joint": (ORANGE, "*", ":"),
    "time_freq_conv": (GREEN, "o", "-"),
    "bottleneck": (RED, "P", "-"),
    "conformer": (PURPLE, "X", "-"),
    "lora": (BLACK, "d", "-."),
    "bitfit": (BLACK, "h", ":"),
    "partial": (GRAY, "s", "--"),
    "linear_probe": (GRAY, "o", ":"),
}
FULL = "full"


class Curve(NamedTuple):
    """A curve: its name in the legend, `(x, y)` from left to right, and its color, marker and line."""

    title: str
    points: Sequence[tuple[float, float]]
    style: tuple[str, str, str]


class Level(NamedTuple):
    """A horizontal line: its name in the legend, its height and its line."""

    title: str
    height: float
    line: str


class Point(NamedTuple):
    """One training, or the mean of several.

    Args:
        method: a key of `methods.METHODS`, or any other name. Points of one method make a curve.
        trainable_parameters: how many train, the head included.
        mean: the metric, in [0, 1].
        std: its standard deviation; None (or NaN) where there is none.
    """

    method: str
    trainable_parameters: int
    mean: float
    std: float | None = None

    @property
    def has_bar(self) -> bool:
        return self.std is not None and not math.isnan(self.std)


def draw_curves(curves: Iterable[Curve], levels: Iterable[Level]) -> Figure:
    """The curves over a logarithmic axis, with a legend beside them."""
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots()
    for title, points, (color, marker, line) in curves:
        line = line if len(points) > 1 else "none"
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, linestyle=line, label=title)
    for title, height, line in levels:
        axes.axhline(height, color=GRAY, linestyle=line, label=title, zorder=1)
    axes.set(xscale="log")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", frameon=False, handlelength=3.5)
    return figure


def plot_tradeoff(points: Sequence[Point], metric: str = "accuracy") -> Figure:
    """Draws a metric over trainable parameters, one curve a method, with bars for the standard deviations.

    Full fine-tuning (the method "full") is a dotted horizontal line, as in the paper.

    Args:
        points: in any order.
        metric: "accuracy", "map", "equal_error_rate" or "min_dcf".

    Raises:
        ValueError: there are no points, one has unusable numbers, a method has two points of one size, "full" has
            several, or the metric is unknown.
    """
    title, factor = axis_of(metric)
    check_points(points)
    by_method: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.trainable_parameters):
        by_method.setdefault(point.method, []).append(point)
    full = by_method.pop(FULL, [])
    styles = styles_of(by_method)
    curves = [
        Curve(TITLES.get(method, method), [(p.trainable_parameters, factor * p.mean) for p in group], styles[method])
        for method, group in by_method.items()
    ]
    figure = draw_curves(curves, [Level(TITLES[FULL], factor * point.mean, ":") for point in full])
    axes = figure.axes[0]
    for method, group in by_method.items():
        barred = [(p.trainable_parameters, factor * p.mean, factor * p.std) for p in group if p.has_bar]
        if barred:
            x, y, errors = zip(*barred)
            axes.errorbar(x, y, yerr=errors, fmt="none", ecolor=styles[method][0], elinewidth=1, alpha=0.5)
    axes.set(xlabel="trainable parameters", ylabel=title)
    return figure


def check_points(points: Sequence[Point]) -> None:
    if not points:
        raise ValueError("`points` is empty: give at least one method with its size and result.")
    sizes = set()
    for point in points:
        if not point.trainable_parameters > 0:
            raise ValueError(f"`trainable_parameters` must be above 0 for a logarithmic axis, got {point}.")
        if not 0 <= point.mean <= 1:
            raise ValueError(f"`mean` must lie in [0, 1] (a share, no percentage), got {point}.")
        if point.has_bar and not 0 <= point.std < math.inf:
            raise ValueError(f"`std` must be 0 or more, or None where there is none, got {point}.")
        size = (point.method, None if point.method == FULL else point.trainable_parameters)
        if size in sizes:
            raise ValueError(
                f"`points` has several for {point.method!r}{f' with {size[1]:,} parameters' if size[1] else ''}: leave "
                "out all but one, or give the other a method name of its own."
            )
        sizes.add(size)


def styles_of(methods: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """A style for each method; those without one of their own get what is left of the colors and markers."""
    taken = {(color, marker) for color, marker, _ in STYLES.values()}
    looks = itertools.product("osD^vPX*d<>", (BLUE, GREEN, RED, PURPLE, ORANGE, SKY, BLACK))
    free = itertools.cycle((color, marker, "-") for marker, color in looks if (color, marker) not in taken)
    return {method: STYLES[method] if method in STYLES else next(free) for method in methods}
