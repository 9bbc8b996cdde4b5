"""The picture of the ESC-10 comparison: accuracy over trainable parameters, one curve a method."""

from pathlib import Path

from esc10_rows import ROWS, row_of, title_of
from matplotlib.figure import Figure  # with no pyplot there is no display to look for, and no state to clean up
from reporting import write_picture


# Horizontal lines: all of the backbone trains, or nothing of it, which a logarithmic axis cannot show.
LEVELS = {"full": "-", "linear_probe": ":"}

# A colour for each family (they differ for colour-blind readers too), a marker and a line for each of its members.
BLUE, SKY, GREEN, ORANGE = "#0072B2", "#56B4E9", "#009E73", "#E69F00"
RED, PURPLE, BLACK, GREY = "#D55E00", "#CC79A7", "#000000", "#777777"
STYLES = {
    "ipet": (BLUE, "o", "-"),
    "parallel_mlp": (BLUE, "s", "--"),
    "embedding_prompt": (SKY, "D", "-"),
    "input_prompt": (SKY, "v", "--"),
    "aat_m": (ORANGE, "^", "-"),
    "aat_ms": (ORANGE, "s", "--"),
    "joint": (ORANGE, "*", ":"),
    "time_freq_conv:T+F": (GREEN, "o", "-"),
    "time_freq_conv:L": (GREEN, "s", "--"),
    "time_freq_conv:T": (GREEN, ">", ":"),
    "time_freq_conv:F": (GREEN, "^", ":"),
    "bottleneck": (RED, "P", "-"),
    "conformer": (PURPLE, "X", "-"),
    "lora": (BLACK, "d", "-."),
}
OTHER_STYLE = (GREY, ".", ":")


def check_picture(name: str) -> None:
    """Raises `ValueError` unless the ending of the file name is one that matplotlib can write."""
    endings = Figure().canvas.get_supported_filetypes()
    if Path(name).suffix[1:] not in endings:
        raise ValueError(f"the file name must end in one of {', '.join(f'.{ending}' for ending in sorted(endings))}.")


def plot_sizes(summary: dict[str, dict], path: Path) -> None:
    """Draws the methods of `summary` (see `esc10.summarize`) into the picture at `path`.

    Raises:
        ValueError: the file name does not end in a format that matplotlib can write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, draw(summary))


def draw(summary: dict[str, dict]) -> Figure:
    """The picture. It leaves the spread over seeds to the table: bars on this many curves would hide them."""
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots()
    for row, points in curves(summary).items():
        color, marker, line = STYLES.get(row, OTHER_STYLE)
        line = line if len(points) > 1 else "none"
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, linestyle=line, label=title_of(row))
    for row, line in LEVELS.items():
        if row in summary:
            height = 100 * summary[row]["accuracy"]
            axes.axhline(height, color=GREY, linestyle=line, label=title_of(row), zorder=1)
    axes.set(xscale="log", xlim=(0.09, 11), xlabel="trainable parameters without the head, % of the backbone")
    axes.set_xticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", frameon=False, handlelength=3.5)
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
