"""Draws the figures of the site: an encoder layer, and where each method acts in it.

    python docs/figures/draw.py

writes an SVG file for each figure beside this file. The frozen model is gray, what trains is orange.
"""

from pathlib import Path


GRAY, DARK, ORANGE, PALE = "#e8eaf0", "#3d4251", "#e8590c", "#ffe8d9"
STREAM, LANE, SHORTCUT = 120, 230, 40  # heights: the tokens, the adapters below, the shortcuts above
LEFT, ATTENTION, FIRST_SUM, B, NORM_2, FEED_FORWARD, SECOND_SUM, RIGHT = 60, 260, 440, 490, 560, 690, 840, 900
NORM_1, READ_1, GIVEN_1, READ_2 = 130, 175, 360, 605  # and what the blocks read and give


class Figure:
    """An SVG picture that grows by the calls of its methods. Places are those of centers."""

    def __init__(self, title, width=960, height=290):
        self.size, self.title, self.items = (width, height), title, []

    def box(self, x, y, text, width=120, trained=False, height=50):
        fill, line = (PALE, ORANGE) if trained else (GRAY, DARK)
        corner = f'x="{x - width / 2:g}" y="{y - height / 2:g}"'
        size = f'width="{width}" height="{height}" rx="6"'
        self.items.append(f'<rect {corner} {size} fill="{fill}" stroke="{line}" stroke-width="1.5"/>')
        self.text(x, y + 5, text, ORANGE if trained else DARK)
        return self

    def text(self, x, y, text, color=DARK, size=15, anchor="middle"):
        look = f'fill="{color}" font-size="{size}" text-anchor="{anchor}"'
        self.items.append(f'<text x="{x:g}" y="{y:g}" {look}>{text}</text>')
        return self

    def line(self, *points, trained=False, arrow=True, dashed=False):
        color, name = (ORANGE, "trained") if trained else (DARK, "frozen")
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        end = f' marker-end="url(#{name})"' * arrow + ' stroke-dasharray="5 4"' * dashed
        self.items.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.7"{end}/>')
        return self

    def plus(self, x, y=STREAM):
        self.items.append(f'<circle cx="{x}" cy="{y}" r="12" fill="white" stroke="{DARK}" stroke-width="1.5"/>')
        return self.text(x, y + 6, "+", size=18)

    def svg(self):
        width, height = self.size
        markers = "".join(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0 L8 4 L0 8 z" fill="{color}"/></marker>'
            for name, color in (("frozen", DARK), ("trained", ORANGE))
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
                'font-family="Helvetica, Arial, sans-serif">',
                f"<title>{self.title}</title>",
                f"<defs>{markers}</defs>",
                f'<rect width="{width}" height="{height}" rx="10" fill="white"/>',
                *self.items,
                "</svg>\n",
            ]
        )


def encoder_layer(title, height=290):
    """A frozen pre-norm encoder layer, its tokens from left to right."""
    figure = Figure(title, height=height)
    figure.text(28, STREAM + 5, "tokens", size=13).text(B - 17, STREAM - 8, "B").text(
        930, STREAM + 5, "tokens", size=13
    )
    for start, end in ((LEFT - 8, NORM_1 - 25), (NORM_1 + 25, ATTENTION - 60), (ATTENTION + 60, FIRST_SUM - 12)):
        figure.line((start, STREAM), (end, STREAM))
    for start, end in ((FIRST_SUM + 12, NORM_2 - 25), (NORM_2 + 25, FEED_FORWARD - 60)):
        figure.line((start, STREAM), (end, STREAM))
    figure.line((FEED_FORWARD + 60, STREAM), (SECOND_SUM - 12, STREAM)).line(
        (SECOND_SUM + 12, STREAM), (RIGHT, STREAM)
    )
    for start, end in ((LEFT + 12, FIRST_SUM), (B, SECOND_SUM)):
        figure.line((start, STREAM), (start, SHORTCUT), (end, SHORTCUT), (end, STREAM - 12))
    figure.box(NORM_1, STREAM, "LN", 50).box(NORM_2, STREAM, "LN", 50)
    return (
        figure.box(ATTENTION, STREAM, "attention")
        .box(FEED_FORWARD, STREAM, "feed-forward")
        .plus(FIRST_SUM)
        .plus(SECOND_SUM)
    )


def branch(figure, start, center, end, text, width=120, lane=LANE):
    """An adapter beside the blocks, from the tokens at `start` to the sum at `end`."""
    figure.line((start, STREAM), (start, lane), (center - width / 2, lane), trained=True)
    figure.line((center + width / 2, lane), (end, lane), (end, STREAM + 12), trained=True)
    return figure.box(center, lane, text, width, trained=True)


def prompts(figure, text="k prompts"):
    """Tokens that attention reads as keys and values."""
    for index in range(4):
        figure.box(ATTENTION - 36 + 24 * index, 66, "", 16, trained=True, height=16)
    figure.line((ATTENTION, 78), (ATTENTION, STREAM - 26), trained=True)
    return figure.text(ATTENTION + 60, 71, text, ORANGE, anchor="start", size=13)


def encoder(title):
    """Three frozen layers in a row, and the head."""
    figure = Figure(title, width=960, height=290)
    figure.text(45, STREAM - 40, "input").box(150, STREAM - 45, "layer 1", 110).box(350, STREAM - 45, "layer 2", 110)
    figure.box(550, STREAM - 45, "layer 3", 110).plus(705, STREAM - 45).box(
        850, STREAM - 45, "head", 110, trained=True
    )
    for start, end in ((70, 95), (205, 295), (405, 495), (605, 693), (717, 795)):
        figure.line((start, STREAM - 45), (end, STREAM - 45))
    return figure


def side_network():
    figure, places = encoder("A side network reads each layer's output and adds to the last one"), (250, 450, 650)
    for index, place in enumerate(places):
        figure.line((place, STREAM - 45), (place, LANE - 56), trained=True).box(place, LANE - 40, "gate", 60, True, 32)
        figure.line((place, LANE - 24), (place, LANE - 4), trained=True)
        figure.box(place, LANE + 16, f"block {index + 1}", 90, True, 40)
    for start, end in zip(places, places[1:]):
        figure.line((start + 45, LANE + 16), (end - 45, LANE + 16), trained=True)
    figure.line((695, LANE + 16), (760, LANE + 16), trained=True).box(790, LANE + 16, "up", 60, True, 40)
    figure.line((790, LANE - 4), (790, 150), (705, 150), (705, STREAM - 33), trained=True)
    return figure.text(100, LANE + 21, "width w = d / 8", ORANGE, size=13)


def input_prompt():
    figure = Figure("Input prompts: the border of a spectrogram, the ends of a waveform", height=290)
    figure.box(220, 135, "", 300, True, 180).box(220, 135, "spectrogram", 250, height=130)
    figure.text(220, 255, "p rows and columns on every side").text(60, 30, "frequency", size=12).text(
        400, 240, "time", size=12
    )
    figure.box(690, 135, "waveform", 380, height=60).box(520, 135, "p", 40, True, 60).box(860, 135, "p", 40, True, 60)
    return figure.text(690, 255, "the first and the last p samples")


def conv_adapter():
    figure = encoder_layer("Convolutional adapters beside attention and beside the feed-forward block", height=320)
    branch(figure, READ_1, ATTENTION, FIRST_SUM, "conv 1 x 3", 130).text(ATTENTION, 275, "over time", ORANGE, 13)
    branch(figure, READ_2, FEED_FORWARD, SECOND_SUM, "conv 3 x 1", 130)
    return figure.text(FEED_FORWARD, 275, "over frequency", ORANGE, 13)


def embedding_prompt():
    figure = prompts(encoder_layer("Embedding prompts: keys and values of attention", height=190))
    return figure.text(ATTENTION, 168, "reads the prompts as keys and values", ORANGE, 13)


def parallel_mlp():
    figure = encoder_layer("The MLP adapter beside the feed-forward block, and AAT's spatial adapter after attention")
    branch(figure, READ_2, FEED_FORWARD, SECOND_SUM, "MLP adapter", 130)
    figure.line((GIVEN_1, STREAM), (GIVEN_1, LANE - 30), trained=True).box(GIVEN_1, LANE, "spatial adapter", 124, True)
    return figure.line((GIVEN_1 + 60, LANE), (FIRST_SUM, LANE), (FIRST_SUM, STREAM + 12), trained=True)


def ipet():
    figure = prompts(encoder_layer("IPET: prompts in attention, and an adapter beside the feed-forward block"))
    return branch(figure, B, FEED_FORWARD, SECOND_SUM, "adapter, times s", 140)


def bottleneck():
    figure = encoder_layer(
        "Bottleneck adapters: in parallel beside attention, in sequence behind the feed-forward block"
    )
    branch(figure, READ_1, ATTENTION, FIRST_SUM, "adapter", 130).text(ATTENTION, 275, "parallel", ORANGE, 13)
    start = FEED_FORWARD + 75
    figure.line((start, STREAM), (start, LANE - 25), trained=True).box(start, LANE, "adapter", 110, True)
    figure.line((start + 55, LANE), (SECOND_SUM, LANE), (SECOND_SUM, STREAM + 12), trained=True)
    return figure.text(start, 275, "sequential", ORANGE, 13)


def overview():
    figure = prompts(encoder_layer("Where each method acts in an encoder layer", height=400), "prompts")
    branch(figure, READ_1, ATTENTION, FIRST_SUM, "adapter", 130)
    branch(figure, READ_2, FEED_FORWARD, SECOND_SUM, "adapter", 130)
    figure.line((870, STREAM), (870, 300), trained=True).box(
        690, 330, "side network: one block a layer, of width d / 8", 430, True
    )
    figure.line((905, 330), (945, 330), trained=True).line((420, 330), (475, 330), trained=True)
    figure.box(190, 330, "input prompt: on the model's input", 290, trained=True)
    return figure.text(480, 388, "gray: frozen, orange: trained (and the head)", size=13)


FIGURES = {
    "overview": overview,
    "embedding_prompt": embedding_prompt,
    "parallel_mlp": parallel_mlp,
    "ipet": ipet,
    "conv_adapter": conv_adapter,
    "bottleneck": bottleneck,
    "side_network": side_network,
    "input_prompt": input_prompt,
}


if __name__ == "__main__":
    for name, draw in FIGURES.items():
        Path(__file__).with_name(f"{name}.svg").write_text(draw().svg(), encoding="utf-8")
