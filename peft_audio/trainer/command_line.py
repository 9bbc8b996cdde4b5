"""The command line of a training script: all that can be checked before data are read, in one-line errors."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Optional

from transformers import HfArgumentParser
from transformers.integrations import get_reporting_integration_callbacks

from ..data import BadAudioError, DataError
from ..utils.arguments import UsageError, check_writable, run_command
from ..utils.ranges import Range
from .argument_checks import check_metric, check_model_folder, checkpoint_to_resume


# Frames of a quarter of an hour, and a day: of more, no computer holds the inputs.
RANGES: Mapping[str, Range] = {
    "max_length": Range(1, 100_000, whole=True, optional=True),
    "max_seconds": Range(0, 86_400, above=True, optional=True),
    "test_fraction": Range(0, 1, above=True, below=True),
    "shuffle_buffer": Range(0, 1_000_000, whole=True),
}


def silence_peft() -> None:
    """Hide what PEFT warns of for every model, though audio models have no vocabulary that it could look for."""
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated|Could not find a config file in")


def parse_dataclasses(types: Sequence[type], arguments: Optional[list[str]] = None) -> tuple[Any, ...]:
    """Return an object of each dataclass, with the values of a command line, or of a JSON file if that is all it has.

    Args:
        types: the dataclasses, see `transformers.HfArgumentParser`.
        arguments: the words of the command line; None for those of this process.

    Raises:
        UsageError: an argument is unknown, missing or of no use; in one line.
    """
    words = sys.argv[1:] if arguments is None else arguments
    is_file = len(words) == 1 and words[0].endswith(".json")
    parser = HfArgumentParser(types)  # type: ignore[arg-type] # its hint leaves out what its text allows
    try:
        if not is_file:
            return parser.parse_args_into_dataclasses(words)
        values = json.loads(Path(words[0]).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"must hold arguments and values, got {type(values).__name__}")
        return parser.parse_dict(values)
    except (ImportError, OSError, TypeError, ValueError) as error:
        text = f"{words[0]}: {error}" if is_file else str(error)
        raise UsageError(" ".join(text.split())) from None


def check_before_data(args: Any, others: Mapping[str, Any], metrics: Iterable[str]) -> None:
    """Check what cannot be right whatever the data are: numbers, folders, the model, names of metrics.

    Args:
        args: the Trainer's arguments.
        others: further arguments by name: model_name_or_path, cache_dir (or None), and any of `RANGES`.
        metrics: what may choose the best checkpoint.

    Raises:
        ValueError: an argument is of no use; names it, the rule and the value.
        FileNotFoundError: there is no checkpoint to go on from.
    """
    for name, wanted in RANGES.items():
        if name in others:
            wanted.check(name, others[name])
    check_model_folder("model_name_or_path", others["model_name_or_path"])
    check_writable("output_dir", args.output_dir)
    if others["cache_dir"] is not None:
        check_writable("cache_dir", others["cache_dir"])
    check_metric(args, metrics)
    get_reporting_integration_callbacks(args.report_to)  # which refuses names that it does not know
    checkpoint_to_resume(args.resume_from_checkpoint, args.output_dir)


def one_line(error: Exception) -> str:
    """Return what an error of another library says, in one line."""
    return " ".join(str(error).split())


def run_script(main: Callable[[], Mapping[str, Any]]) -> NoReturn:
    """Run a training script, and end the process: with an error in one line, and a status other than 0, if it failed.

    Args:
        main: returns the results of the training, with `problem`: what is wrong with them, or None.
    """
    problem = run_command(main, (BadAudioError, DataError, OSError))["problem"]
    sys.exit(problem and f"error: {problem} What was trained so far is saved.")
