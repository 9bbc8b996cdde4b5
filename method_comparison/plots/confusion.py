"""Which classes a classifier takes for which: the confusion matrix."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix


NUMBERS_UP_TO = 12  # classes; with more, the numbers would not be read
INCHES = 0.22  # for each class: room for a line of text of eight points
FONT_SIZE = 8


def plot_confusion(targets: Sequence[str], predictions: Sequence[str], labels: Sequence[str] | None = None) -> Figure:
    """Draws for each class (a row) the shares of its clips by the class that they are taken for.

    A row sums to 1; that of a class without clips is 0.

    Args:
        targets: the class of each clip.
        predictions: the class that each clip is taken for.
        labels: all classes, in the order of the rows and columns; None: those that come up, sorted.

    Raises:
        ValueError: there are no clips, the two have different lengths, or `labels` names a class twice or lacks one.
    """
    labels = checked_labels(targets, predictions, labels)
    matrix = confusion_matrix(targets, predictions, labels=labels, normalize="true")
    side = max(5.0, INCHES * len(labels) + 2)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    ConfusionMatrixDisplay(matrix, display_labels=labels).plot(
        ax=axes,
        include_values=len(labels) <= NUMBERS_UP_TO,
        values_format=".2f",
        xticks_rotation="vertical",
        cmap="Blues",
        colorbar=False,
        im_kw={"vmin": 0, "vmax": 1},
        text_kw={"fontsize": FONT_SIZE},
    )
    axes.tick_params(labelsize=FONT_SIZE)
    axes.set(xlabel="predicted class", ylabel="class")
    figure.colorbar(axes.images[0], ax=axes, label="share of the clips of the class", shrink=0.6)
    return figure


def checked_labels(targets: Sequence[str], predictions: Sequence[str], labels: Sequence[str] | None) -> list[str]:
    """The classes of the rows and columns, see `plot_confusion`."""
    if not len(targets) or len(targets) != len(predictions):
        raise ValueError(
            f"`targets` and `predictions` must have a class for each clip, got {len(targets)} and {len(predictions)}."
        )
    present = {*targets, *predictions}
    labels = sorted(present) if labels is None else list(labels)
    if len(set(labels)) < len(labels):
        raise ValueError(f"`labels` must name each class once, got {', '.join(duplicates(labels))} several times.")
    if not present.issubset(labels):
        missing = ", ".join(map(repr, sorted(present.difference(labels))))
        raise ValueError(f"`labels` must name all classes of targets and predictions, it lacks {missing}.")
    return labels


def duplicates(labels: list[str]) -> list[str]:
    return [repr(label) for label in dict.fromkeys(labels) if labels.count(label) > 1]
