"""A metric on the test clips after every epoch, of several runs over one another."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .metrics import axis_of


def plot_epochs(runs: Mapping[str, Sequence[float]], metric: str = "accuracy") -> Figure:
    """Draws a curve for each run.

    Args:
        runs: by name, the metric after each epoch; the runs may have different numbers of epochs.
        metric: "accuracy", "map", "equal_error_rate" or "min_dcf".

    Raises:
        ValueError: there are no runs, one has no epochs or a value outside [0, 1], or the metric is unknown.
    """
    title, factor = axis_of(metric)
    if not runs:
        raise ValueError("`runs` is empty: give at least one run.")
    curves = {name: np.asarray(values, dtype=np.float64) for name, values in runs.items()}
    for name, values in curves.items():
        if values.ndim != 1 or not values.size:
            raise ValueError(f"Run {name!r} must have a value for each epoch, got shape {values.shape}.")
        outside = np.flatnonzero(~((values >= 0) & (values <= 1)))
        if outside.size:
            raise ValueError(
                f"Run {name!r}, epoch {outside[0] + 1}: {metric} must lie in [0, 1], got {values[outside[0]]}."
            )
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots()
    looks = itertools.cycle(itertools.product(("-", "--", ":", "-."), (f"C{index}" for index in range(10))))
    for (name, values), (line, color) in zip(curves.items(), looks):
        epochs = np.arange(1, values.size + 1)
        axes.plot(epochs, factor * values, color=color, linestyle=line, marker=".", label=name)
    axes.set(xlabel="epoch", ylabel=f"{title}, test clips")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return figure
