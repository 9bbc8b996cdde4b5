"""The picture of the ESC-10 comparison: accuracy over trainable parameters, one curve a method."""

from pathlib import Path

from esc10_rows import ROWS, row_of, title_of
from matplotlib.figure import Figure
from plots.files import check_picture, save_picture
from plots.tradeoff import GRAY, GREEN, Curve, Level, draw_curves
from plots.tradeoff import STYLES as METHOD_STYLES


__all__ = ["LEVELS", "STYLES", "check_picture", "curves", "draw", "plot_sizes"]

# Horizontal lines: all of the backbone trains, or nothing of it, which a logarithmic axis cannot show.
LEVELS = {"full": "-", "linear_probe": ":"}

STYLES = {row: style for row, style in METHOD_STYLES.items() if row in ROWS and row not in LEVELS} | {
    "time_freq_conv:T+F": (GREEN, "o", "-"),
    "time_freq_conv:L": (GREEN, "s", "--"),
    "time_freq_conv:T": (GREEN, ">", ":"),
    "time_freq_conv:F": (GREEN, "^", ":"),
}
OTHER_STYLE = (GRAY, ".", ":")


def plot_sizes(summary: dict[str, dict], path: Path) -> None:
    """Draws the methods of `summary` (see `esc10.summarize`) into the picture at `path`.

    Raises:
        ValueError: the file name does not end in a format that matplotlib can write.
    """
    save_picture(path, draw(summary))


def draw(summary: dict[str, dict]) -> Figure:
    """The picture. It leaves the spread over seeds to the table: bars on this many curves would hide them."""
    figure = draw_curves(
        [Curve(title_of(row), points, STYLES.get(row, OTHER_STYLE)) for row, points in curves(summary).items()],
        [Level(title_of(row), 100 * summary[row]["accuracy"], line) for row, line in LEVELS.items() if row in summary],
    )
    axes = figure.axes[0]
    axes.set(xlim=(0.09, 11), xlabel="trainable parameters without the head, % of the backbone")
    axes.set_xticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
    axes.set_ylabel("accuracy, %")
    return figure


def curves(summary: dict[str, dict]) -> dict[str, list[tuple[float, float]]]:
    """By row, the (share of the backbone, accuracy) of the row and its sizes, both in %, from small to large.

    A size that was not tested on all folds of its row is left out: folds differ more than sizes do.
    """
    rows = [row for row in dict.fromkeys([*ROWS, *map(row_of, summary)]) if row not in LEVELS]
    points = {
        row: sorted(
            (100 * values["share_of_backbone"], 100 * values["accuracy"])
            for name, values in summary.items()
            if row_of(name) == row and folds_of(values) == folds_of(summary.get(row, values))
        )
        for row in rows
    }
    return {row: there for row, there in points.items() if there}


def folds_of(values: dict) -> set[str]:
    return set(values["accuracy_by_fold"])
