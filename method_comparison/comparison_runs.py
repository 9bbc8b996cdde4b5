"""What comparisons share: their arguments, the records of their runs, one a line of a file, and tables."""

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import examples_path  # noqa: F401
from comparison_arguments import check_arguments
from files import write_text
from rich.console import Console

from peft_audio.trainer import UsageError


@dataclass
class RunArguments:
    """Of every comparison."""

    output_dir: str = field(metadata={"help": "Where the results are, or will be."})
    jobs: int = field(default=1, metadata={"help": "Runs at a time, each on one thread, all on the same GPU."})
    table: bool = field(default=False, metadata={"help": "Only print the tables of the results there are."})

    def __post_init__(self):
        check_arguments(self)


def check_file(path: Path) -> None:
    """Raises `UsageError` where there is no file of results to print."""
    if not path.is_file():
        raise UsageError(f"--table: there is no {path}. Run the comparison first, without --table.")


def read_records(path: Path) -> list[dict]:
    """The records of a results file, without a line that was cut off."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # a run that was killed while it wrote
    return records


def append_missing(
    path: Path, runs: list, train_one: Callable[[Any], dict], jobs: int, shown: str = "accuracy"
) -> None:
    """Appends to the file at `path` what `train_one` returns for each of `runs` (tuples with names) that it lacks.

    `shown` is the figure of a record that is printed as it comes.
    """
    records = read_records(path)
    runs = [run for run in runs if not any(is_of(record, run) for record in records)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))  # whole lines only, to append to
    console = Console(stderr=True)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as executor:
        futures = {executor.submit(train_one, run): run for run in runs}
        for number, future in enumerate(as_completed(futures), start=1):
            record = future.result()
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            told = ", ".join(f"{name} {value}" for name, value in futures[future]._asdict().items())
            console.print(f"{number}/{len(runs)} {told}: {record[shown]:.3f} ({record['seconds']:.0f} s)")


def is_of(record: dict, run: Any) -> bool:
    return all(record[name] == value for name, value in run._asdict().items())


def markdown(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])
