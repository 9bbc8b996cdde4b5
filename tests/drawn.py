"""What a matplotlib figure shows, for tests of pictures."""

import numpy as np
import pictures


def lines_of(axes):
    """By name in the legend, the points of each line."""
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def legend_of(legend):
    return [text.get_text() for text in legend.get_texts()]


def ticks_of(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def image_of(axes):
    (image,) = axes.images
    return np.asarray(image.get_array())


def figure_of(*arguments):
    args = pictures.parse_arguments([*map(str, arguments), "--output", "picture.png"])
    return args.draw(args)
