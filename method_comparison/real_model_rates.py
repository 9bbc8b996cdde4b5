"""Learning rates for the comparison on Whisper tiny.en: folds 2 and 3 of ESC-10 train, folds 4 and 5 judge.

    python method_comparison/real_model_rates.py --data_dir ESC10 --output_dir OUT --jobs 2
    python method_comparison/real_model_rates.py --output_dir OUT --table

OUT/rates.jsonl gets a line for each run as it ends, and no run is repeated. Everything but the rate of what is trained inside
the encoder (of the head, for the head alone) is as in `real_model_rows.py`, whose rates were chosen from this table.
"""

from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from comparison_runs import markdown, read_records
from real_model import SharedArguments, Source, fit, load_data, run_missing
from real_model_rows import EPOCHS, ROWS
from rich.console import Console

from peft_audio.trainer.command_line import parse_dataclasses
from peft_audio.utils.arguments import run_command


TRAINING_FOLDS, JUDGING_FOLDS = ("2", "3"), ("4", "5")
RATES = {name: [3e-4, 1e-3, 3e-3] for name in ROWS if name != "full"} | {"full": [3e-5, 1e-4, 3e-4]}


class Trial(NamedTuple):
    """One training: a row of the comparison, the rate tried instead of its own, the seed."""

    row: str
    learning_rate: float
    seed: int


def main(arguments: list[str] | None = None) -> list[dict]:
    """Trains what is missing and prints the table. Returns the records of all runs.

    Raises:
        UsageError: the arguments do not fit together.
    """
    (args,) = parse_dataclasses([SharedArguments], arguments)
    path = Path(args.output_dir) / "rates.jsonl"
    trials = [Trial(row, rate, seed) for seed in args.seeds for row in args.methods for rate in RATES[row]]
    run_missing(args, path, trials, train)
    records = read_records(path)
    Console(width=200, highlight=False, markup=False).print(markdown(*table(records)), soft_wrap=True)
    return records


def train(source: Source, trial: Trial) -> dict[str, Any]:
    """Trains one trial and judges it. Returns its record."""
    clips = load_data(source)[0]
    parts = [[clip for clip in clips if clip.fold in folds] for folds in (TRAINING_FOLDS, JUDGING_FOLDS)]
    row = ROWS[trial.row]._replace(learning_rate=trial.learning_rate)
    if row.method == "linear_probe":  # has nothing but a head
        row = row._replace(head_learning_rate=trial.learning_rate)
    # Two folds have 16 clips of each class.
    return {**trial._asdict(), **fit(source, row, (parts[0], parts[1]), EPOCHS[16], trial.seed)}


def table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, means over seeds; the row's own rate is marked."""
    header = ["method", "learning rate", "accuracy %", "loss of the judged clips", "training loss", "runs"]
    rows = []
    for name, rate in sorted(
        {(r["row"], r["learning_rate"]) for r in records}, key=lambda key: (list(ROWS).index(key[0]), key[1])
    ):
        own = [r for r in records if (r["row"], r["learning_rate"]) == (name, rate)]
        accuracy, judged, trained = (mean(r[key] for r in own) for key in ("accuracy", "test_loss", "train_loss"))
        shown = f"**{rate:g}**" if rate == ROWS[name].learning_rate else f"{rate:g}"
        rows.append(
            [ROWS[name].title, shown, f"{100 * accuracy:.1f}", f"{judged:.2f}", f"{trained:.3f}", str(len(own))]
        )
    return header, rows


if __name__ == "__main__":
    run_command(main)
