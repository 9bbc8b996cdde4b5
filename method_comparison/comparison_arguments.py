"""What the comparisons check of their arguments before they read data: hours of training follow."""

from pathlib import Path
from typing import Any

from plots.files import check_picture

from peft_audio.trainer import check_model_folder
from peft_audio.utils.arguments import UsageError, check_distinct, check_each, check_folder, check_writable
from peft_audio.utils.ranges import COUNT, SEED, Range


NUMBERS = {
    "jobs": Range(1, 1024, whole=True),  # processes
    "epochs": COUNT,
    "batch_size": COUNT,
}
LISTS = {"seeds": SEED, "shots": COUNT, "learning_rates": Range(0, above=True)}


def check_arguments(args: Any) -> None:
    """Check those arguments that there are; with `table` nothing is trained, and no data are needed.

    Raises:
        ValueError: one is of no use; names it, the rule and the value.
    """
    given = vars(args)
    for name, wanted in NUMBERS.items():
        if name in given:
            wanted.check(name, given[name])
    for name, wanted in LISTS.items():
        check_each(name, given.get(name) or [], wanted)
    for name in ("methods", "folds"):
        check_distinct(name, given.get(name) or [])
    if given.get("plot") is not None:
        check_plot(given["plot"])
    if not args.table:
        check_folders(args)


def check_plot(plot: str) -> None:
    try:
        check_picture(plot)
    except ValueError as error:
        raise UsageError(f"--plot {plot}: {error}") from None
    check_writable("plot", Path(plot).parent)


def check_folders(args: Any) -> None:
    check_writable("output_dir", args.output_dir)
    check_model_folder("model_name_or_path", args.model_name_or_path)
    if args.data_dir is None:
        raise UsageError("--data_dir is missing: the folder with the clips and their metadata.csv.")
    check_folder("data_dir", args.data_dir, "metadata.csv")
