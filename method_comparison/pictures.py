"""Draws what experiments have left behind.

    python method_comparison/pictures.py tradeoff outputs/recipes/ipet/ast-esc50* --output sizes.png
    python method_comparison/pictures.py epochs outputs/recipes/ipet --metric accuracy --output curves.png
    python method_comparison/pictures.py attention ADAPTER bell.wav --frames 320 336 --output attention.png
    python method_comparison/pictures.py confusion predictions.csv --output confusion.png
    python method_comparison/pictures.py verification trials.csv --output det.png

The first two read the folders of `run_recipe.py`; "LoAA T=FOLDER" puts a recipe on a curve of that name. ADAPTER is a
folder or a name on the Hub. The columns of predictions.csv are label and prediction, those of trials.csv score and label
(1 for the same speaker, 0 for others).
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import examples_path  # noqa: F401
from compare_adapters import config_of, load_feature_extractor
from experiments.report import AVERAGED, RULES
from matplotlib.figure import Figure
from plots.attention import before_and_after, plot_attention
from plots.confusion import plot_confusion
from plots.epochs import plot_epochs
from plots.files import check_picture, read_columns, read_entry, save_picture
from plots.metrics import AXES
from plots.tradeoff import Point, plot_tradeoff

from peft_audio import AutoPeftModelForAudioClassification
from peft_audio.data import load_waveform, minimum_seconds, model_inputs
from peft_audio.trainer.verification_plot import plot_verification
from peft_audio.utils.arguments import UsageError, check_file, check_folder, check_writable, run_command
from peft_audio.utils.ranges import Range


SUMMARY, RESULT = "summary.json", "result.json"
SHARE = Range(0, 1, above=True, below=True)
# How many layers, frames and heads a model can have; that of the adapter is asked when it is loaded.
LAYER, FRAME, INDEX = Range(-1000, 999, whole=True), Range(0, 100_000, whole=True), Range(0, 999, whole=True)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)

    tradeoff = kinds.add_parser("tradeoff", help="a metric over trainable parameters, one curve a method")
    tradeoff.add_argument(
        "recipes",
        nargs="+",
        metavar="FOLDER",
        help="a recipe's folder, or NAME=FOLDER to put it on a curve of that name",
    )
    rules = [*RULES.values(), AVERAGED]
    tradeoff.add_argument("--rule", default="last epoch", choices=rules, help="which epoch counts")
    tradeoff.set_defaults(draw=draw_tradeoff, check=check_recipe_folders)

    epochs = kinds.add_parser("epochs", help="a metric on the test clips after every epoch")
    epochs.add_argument("runs", nargs="+", type=Path, metavar="FOLDER", help="folders with finished runs in them")
    epochs.set_defaults(draw=draw_epochs, check=lambda args: [check_folder("FOLDER", run) for run in args.runs])

    add_attention(kinds)

    confusion = kinds.add_parser("confusion", help="confusion matrix, by class")
    confusion.add_argument("predictions", type=Path, help="CSV file with the columns label and prediction")
    confusion.set_defaults(draw=draw_confusion, check=lambda args: check_file("predictions", args.predictions))

    verification = kinds.add_parser("verification", help="score histogram and DET curve")
    verification.add_argument("trials", type=Path, help="CSV file with the columns score and label")
    verification.add_argument("--p_target", type=SHARE, default=0.01, help="probability of a target trial, for minDCF")
    verification.set_defaults(draw=draw_verification, check=lambda args: check_file("trials", args.trials))

    for kind in (tradeoff, epochs):
        kind.add_argument("--metric", default="accuracy", choices=AXES)
    for kind in kinds.choices.values():
        kind.add_argument("--output", type=Path, required=True, help="the picture; its ending says which format")
    args = parser.parse_args(arguments)
    check_output(args.output)
    args.check(args)
    return args


def check_output(path: Path) -> None:
    """Raises `UsageError` unless the picture can be written."""
    try:
        check_picture(path.name)
    except ValueError as error:
        raise UsageError(f"--output {path}: {error}") from None
    check_writable("--output", path.parent)


def check_recipe_folders(args: argparse.Namespace) -> None:
    for text in args.recipes:
        check_folder("FOLDER", text if Path(text).is_dir() else text.rpartition("=")[2], SUMMARY)


def check_attention(args: argparse.Namespace) -> None:
    check_file("clip", args.clip)
    if args.adapter.startswith(("/", "./", "../", "~")) or Path(args.adapter).is_dir():  # else a name on the Hub
        check_folder("adapter", args.adapter, "adapter_config.json")
    if args.frames[0] >= args.frames[1]:
        raise UsageError(f"--frames must be a first frame and the one after the last, got {args.frames}.")


def add_attention(kinds) -> None:
    """Add the arguments of `attention` to the subparsers."""
    attention = kinds.add_parser("attention", help="what an AST attends to, before and after adaptation")
    attention.add_argument("adapter", help="folder of the adapter, or its name on the Hub")
    attention.add_argument("clip", type=Path, help="audio file")
    attention.add_argument("--layer", type=LAYER, default=-1, help="encoder layer, negative from the end")
    attention.add_argument(
        "--frames",
        type=FRAME,
        nargs=2,
        default=(320, 336),
        help="first frame (10 ms each), and the one after the last",
    )
    attention.add_argument("--head", type=INDEX, help="attention head; the mean over all if left out")
    attention.add_argument("--frequency_patch", type=INDEX, help="from the lowest; the mean over all if left out")
    attention.set_defaults(draw=draw_attention, check=check_attention)


def main(arguments: list[str] | None = None) -> Path:
    """Draw what the command line (or `arguments`) says. Returns the picture's path.

    Raises:
        ValueError: a file or an argument cannot be used; the message says which, and why.
    """
    args = parse_arguments(arguments)
    save_picture(args.output, args.draw(args))
    return args.output


def draw_tradeoff(args: argparse.Namespace) -> Figure:
    figure = plot_tradeoff([point_of(text, args.metric, args.rule) for text in args.recipes], args.metric)
    figure.axes[0].set_title(f"{args.rule}; bars: standard deviation over folds", fontsize="medium")
    return figure


def point_of(text: str, metric: str, rule: str) -> Point:
    """The result in a recipe's folder, given as FOLDER (its curve is that of its method) or as NAME=FOLDER."""
    name, _, folder = ("", "", text) if Path(text).is_dir() else text.rpartition("=")
    summary = Path(folder) / SUMMARY
    mean, std = (read_entry(summary, "measured", metric, rule, key) for key in ("mean", "std_over_folds"))
    return Point(name or method_of(summary), read_entry(summary, "trainable_parameters"), mean, std)


def method_of(summary: Path) -> str:
    """The method of the recipe, which is in the results of its runs."""
    part, seed = read_entry(summary, "parts")[0], read_entry(summary, "seeds")[0]
    return read_entry(summary.parent / part / f"seed-{seed}" / RESULT, "settings", "recipe", "method")


def draw_epochs(args: argparse.Namespace) -> Figure:
    paths = results_in(args.runs)
    names = [", ".join([read_entry(path, "settings", "recipe", "name"), *path.parts[-3:-1]]) for path in paths]
    # The same run with other settings lies in another folder.
    names = [name if names.count(name) == 1 else str(path.parent) for name, path in zip(names, paths)]
    runs = {name: read_entry(path, "epochs", "test", args.metric) for name, path in zip(names, paths)}
    return plot_epochs(runs, args.metric)


def results_in(folders: Iterable[Path]) -> list[Path]:
    """The results of all finished runs in these folders, each once. Raises `ValueError` for a folder without any."""
    found = {}
    for folder in folders:
        inside = sorted(path.resolve() for path in folder.rglob(RESULT))
        if not inside:
            raise ValueError(
                f"{folder}: there is no {RESULT} in it. Give a folder in which run_recipe.py has finished a run."
            )
        found |= dict.fromkeys(inside)
    return list(found)


def draw_attention(args: argparse.Namespace) -> Figure:
    model = AutoPeftModelForAudioClassification.from_pretrained(args.adapter, attn_implementation="eager")
    extractor = load_feature_extractor(args.adapter, config_of(args.adapter))
    try:
        shortest = minimum_seconds(model.config, extractor.sampling_rate)
        waveform = load_waveform(args.clip, extractor.sampling_rate, shortest)
    except ValueError as error:
        raise ValueError(f"{args.clip}: {error}") from None
    spectrogram = model_inputs(waveform, extractor)["input_values"]
    frames = tuple(args.frames)
    chosen = {"layer": args.layer, "frames": frames, "head": args.head, "frequency_patch": args.frequency_patch}
    return plot_attention(spectrogram, *before_and_after(model, spectrogram, **chosen), model.config, frames)


def draw_confusion(args: argparse.Namespace) -> Figure:
    labels, predictions = read_columns(args.predictions, {"label": str, "prediction": str})
    return plot_confusion(labels, predictions)


def draw_verification(args: argparse.Namespace) -> Figure:
    scores, labels = read_columns(args.trials, {"score": float, "label": float})
    return plot_verification(scores, labels, args.p_target)


if __name__ == "__main__":
    run_command(main)
