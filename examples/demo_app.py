"""A page where a person drops or records a sound and sees what several adapters of one backbone make of it: their labels
side by side, and what one of them attends to over the spectrogram.

    python examples/demo_app.py --adapters esc50-ipet me/birds
    python examples/demo_app.py

Without --adapters it first trains small ones on the bundled backbone, as `demo_small.py` does. Needs gradio.
"""

import argparse
import importlib.util
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from attention_picture import draw
from compare_adapters import Comparison, Predictions, load_adapters
from demo_small import BACKBONE, MAX_LENGTH, METHODS, make_task, train
from matplotlib.figure import Figure
from transformers import AutoFeatureExtractor
from transformers.hf_argparser import string_to_bool
from transformers.utils import logging

from peft_audio.data import load_waveform
from peft_audio.utils.arguments import run_command
from peft_audio.utils.ranges import Range


TOP_K = 5
AUDIBLE = 0.01  # seconds; what encoders of audio add at the end is less
MAX_ADAPTERS = 4  # side by side
MAX_SECONDS = 30.0
MAX_FILE_SIZE = "50mb"  # 30 s at 192 kHz in two channels of 32 bits are 46 MB
TITLE = "One sound, several adapters"
DESCRIPTION = """# {title}

All adapters here share the backbone `{backbone}`. Drop a sound or record one, and see what each of them hears in it, and
which parts of the sound it attends to."""


def load_sound(comparison: Comparison, path: str | None) -> np.ndarray:
    """The mono waveform of the sound file at `path`, at the models' sampling rate, a second longer than is heard at most.

    Raises:
        gradio.Error: there is no file, or it cannot be used; the page shows the message.
    """
    import gradio

    if path is None:
        raise gradio.Error("There is no sound yet: drop a file or record one first.", print_exception=False)
    try:
        # A second more than is heard says whether something is cut off; a file of hours is not decoded to its end.
        limits = {"min_seconds": comparison.min_seconds, "max_seconds": MAX_SECONDS + 1}
        return load_waveform(Path(path), comparison.sampling_rate, **limits)
    except ValueError as error:
        raise gradio.Error(f"This sound cannot be used: {error}.", print_exception=False) from error


def compare(comparison: Comparison, path: str | None, names: list[str]) -> dict[str, Predictions]:
    """The predictions of the adapters called `names` for the sound file at `path`; the page is told what is cut off.

    Raises:
        gradio.Error: there are no names or too many, or as `load_sound`.
    """
    import gradio

    if path is not None and not 0 < len(names) <= MAX_ADAPTERS:
        ticked = f"{len(names)} adapters are chosen" if names else "No adapter is chosen"
        raise gradio.Error(f"{ticked}: tick one to {MAX_ADAPTERS}.", print_exception=False)
    waveform = load_sound(comparison, path)
    seconds = len(waveform) / comparison.sampling_rate
    limits = {name: min(MAX_SECONDS, comparison.max_seconds(name)) for name in names}
    cut = [f"{name} its first {limit:.2f} s" for name, limit in limits.items() if limit + AUDIBLE < seconds]
    if cut:
        lasts = f"{seconds:.2f} s" if seconds <= MAX_SECONDS else f"more than {MAX_SECONDS:g} s"
        gradio.Info(f"The sound lasts {lasts}. Not every adapter hears it to its end: {', '.join(cut)}.")
    return comparison.predict(heard(comparison, waveform), comparison.sampling_rate, names, TOP_K)


def heard(comparison: Comparison, waveform: np.ndarray) -> np.ndarray:
    return waveform[: round(MAX_SECONDS * comparison.sampling_rate)]


def picture(comparison: Comparison, path: str | None, name: str) -> Figure:
    """The spectrogram of the sound file at `path`, and over it the attention with the adapter called `name`.

    Raises:
        gradio.Error: as `load_sound`.
    """
    waveform = heard(comparison, load_sound(comparison, path))
    attention = comparison.attention(waveform, comparison.sampling_rate, name)
    figure = draw(waveform, comparison.sampling_rate, attention)
    what = "attention of the last layer" if attention else "this model does not give its attention"
    figure.suptitle(f"{name}: {what}")
    return figure


def show_results(comparison: Comparison, path: str | None, names: list[str], chosen: str) -> list:
    """What the page shows below the sound: a label of each adapter, the choice whose attention is drawn, the picture."""
    import gradio

    predictions = compare(comparison, path, names)
    labels = [
        gradio.Label(dict(predictions[name]), visible=True) if name in predictions else gradio.Label(visible=False)
        for name in comparison.names
    ]
    chosen = chosen if chosen in names else names[0]
    figure = picture(comparison, path, chosen)
    return [*labels, gradio.Radio(names, value=chosen, visible=True), gradio.Plot(figure, visible=True)]


def hide_results(comparison: Comparison) -> list:
    import gradio

    labels = [gradio.Label(visible=False)] * len(comparison.names)
    return [*labels, gradio.Radio(visible=False), gradio.Plot(visible=False)]


def build_page(comparison: Comparison):
    """The page, a `gradio.Blocks`: predictions of each adapter that is ticked, and what one of them attends to."""
    import gradio

    # People's sounds are deleted after an hour, and at the end.
    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown(DESCRIPTION.format(title=TITLE, backbone=Path(comparison.base_model).name))
        with gradio.Row():
            sound = gradio.Audio(
                label="Sound", sources=["upload", "microphone"], type="filepath", buttons=["download"]
            )
            with gradio.Column():
                first = comparison.names[:MAX_ADAPTERS]
                label = "Adapters" if first == comparison.names else f"Adapters, up to {MAX_ADAPTERS}"
                names = gradio.CheckboxGroup(comparison.names, value=first, label=label)
                button = gradio.Button("Predict", variant="primary")
        with gradio.Row():
            labels = [gradio.Label(label=name, num_top_classes=TOP_K, visible=False) for name in comparison.names]
        chosen = gradio.Radio(first, value=first[0], label="Attention of", visible=False)
        figure = gradio.Plot(label="Spectrogram and attention", visible=False)
        results = [*labels, chosen, figure]
        # What is shown is never of an earlier sound.
        sound.change(partial(hide_results, comparison), None, results, queue=False)
        # One at a time: a call uses the model that the adapters share.
        alone = {"concurrency_limit": 1, "concurrency_id": "model"}
        button.click(partial(show_results, comparison), [sound, names, chosen], results, **alone)
        chosen.input(partial(picture, comparison), [sound, chosen], figure, **alone)
    return page


def make_adapters(folder: Path, epochs: int = 6, clips_per_class: int = 50) -> list[Path]:
    """Trains the demonstration's adapters, each into a folder of its own, and returns the folders."""
    extractor = AutoFeatureExtractor.from_pretrained(BACKBONE, max_length=MAX_LENGTH)
    task, test = make_task(extractor, clips_per_class, seed=1), make_task(extractor, 5, seed=2)
    folders = []
    for name, method in METHODS.items():
        if name == "full":  # no adapter
            continue
        model, result = train(name, task, test, epochs, str(folder / "trainer"))
        print(f"Trained {method.title} in {result['seconds']:.0f} s")
        folders.append(folder / name)
        model.save_pretrained(folders[-1])
    return folders


def load(sources: list[str] | None) -> Comparison:
    if sources:
        return load_adapters(sources)
    print("Training small adapters on the bundled backbone; name some with --adapters to see those instead.")
    # As in demo_small.py: models this small gain little from a second thread.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return load_adapters(make_adapters(Path(folder)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", nargs="+", metavar="FOLDER_OR_HUB_ID", help="adapters of one base model")
    parser.add_argument(
        "--port",
        type=Range(1, 65_535, whole=True),
        help="where the page is served; the first free one from 7860 if left out",
    )
    parser.add_argument("--share", type=string_to_bool, default=False, help="True: a public address, through gradio")
    arguments = parser.parse_args()
    if importlib.util.find_spec("gradio") is None:
        sys.exit("error: the page is made with gradio, which is not installed: pip install gradio")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    comparison = run_command(lambda: load(arguments.adapters))
    build_page(comparison).launch(server_port=arguments.port, share=arguments.share, max_file_size=MAX_FILE_SIZE)


if __name__ == "__main__":
    main()
