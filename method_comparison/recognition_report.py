"""Tables of the comparison on recognition, from its records alone."""

from collections.abc import Callable
from pathlib import PurePosixPath
from statistics import mean, stdev

import numpy as np
from comparison_runs import markdown
from recognition_corpus import SEEN, TEST, UNSEEN, VALIDATION
from recognition_rows import ROWS
from rich.console import Console


RATE_SEED = 0  # of the runs that choose the learning rates
REFERENCE = "lora_both"  # the usual one; the table has differences to it
NUM_RESAMPLES = 2000
WRONG_WORDS, WORDS, WRONG_CHARACTERS, CHARACTERS = range(4)  # of the counts of a clip


def print_report(records: list[dict]) -> None:
    """Prints the tables as Markdown."""
    chosen = chosen_runs(records)
    console = Console(width=200, highlight=False, markup=False)
    for title, (header, rows) in {
        "word error rate on the test clips": table(chosen),
        "word error rate by test voice": by_voice(chosen),
        "learning rates: word error rate on the validation clips": rates_table(records),
    }.items():
        console.print(f"\n{title}\n")
        console.print(markdown(header, rows), soft_wrap=True)


def chosen_rates(records: list[dict]) -> dict[str, float]:
    """By row the learning rate with the lowest word error rate on the validation clips."""
    tried: dict[str, dict[float, float]] = {}
    for record in tries(records):
        tried.setdefault(record["row"], {})[record["learning_rate"]] = error_rate([record], VALIDATION)
    return {name: min(rates, key=rates.__getitem__) for name, rates in tried.items()}


def tries(records: list[dict]) -> list[dict]:
    return [r for r in records if r["seed"] == RATE_SEED and r["learning_rate"] is not None]


def chosen_runs(records: list[dict]) -> dict[str, list[dict]]:
    """By row the runs with the chosen learning rate."""
    rates = chosen_rates(records)
    runs = {name: [r for r in records if r["row"] == name and r["learning_rate"] == rates.get(name)] for name in ROWS}
    return {name: sorted(own, key=lambda record: record["seed"]) for name, own in runs.items() if own}


def table(chosen: dict[str, list[dict]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: means over seeds and their spread, the standard deviation."""
    header = ["method", "WER %", "of the seeds", "minus LoRA, both stacks", "names seen", "names unseen", "CER %"]
    header += ["trainable", "checkpoint, bytes", "learning rate", "CPU s", "seeds"]
    rows = []
    for name, own in chosen.items():
        is_trained = ROWS[name].method is not None
        rates = [f"{100 * error_rate([record], TEST):.1f}" for record in own]
        cells = [ROWS[name].title, spread(own, error_rate), ", ".join(rates) if is_trained else "-"]
        cells += ["-" if name == REFERENCE else difference(own, chosen.get(REFERENCE, []))]
        cells += [f"{100 * error_rate(own, TEST, names_are(names)):.1f}" for names in (SEEN, UNSEEN)]
        cells += [spread(own, character_error_rate)]
        sizes = (
            [f"{own[0]['trainable_parameters']:,}", f"{own[0]['checkpoint_bytes']:,}", f"{own[0]['learning_rate']:g}"]
            if is_trained
            else ["0", "-", "-"]
        )
        cells += [*sizes, f"{mean(r['seconds'] for r in own):.0f}" if is_trained else "-"]
        rows.append([*cells, str(len(own)) if is_trained else "-"])
    return header, rows


def spread(records: list[dict], rate: Callable) -> str:
    """Mean and standard deviation over runs, in percent."""
    values = [100 * rate([record], TEST) for record in records]
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def by_voice(chosen: dict[str, list[dict]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: means over seeds for each test voice."""
    names = next(iter(chosen.values()))[0][TEST]["names"] if chosen else []
    voices = list(dict.fromkeys(voice_of(name) for name in names))
    rows = []
    for row, own in chosen.items():
        rates = [error_rate(own, TEST, lambda name, voice=voice: voice_of(name) == voice) for voice in voices]
        rows.append([ROWS[row].title, *(f"{100 * rate:.1f}" for rate in rates)])
    return ["method", *voices], rows


def rates_table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each rate that was tried, the chosen ones marked."""
    chosen, rows = chosen_rates(records), []
    for name in (name for name in ROWS if ROWS[name].method is not None):
        own = [record for record in tries(records) if record["row"] == name]
        for record in sorted(own, key=lambda record: record["learning_rate"]):
            rate = f"{record['learning_rate']:g}"
            shown = f"**{rate}**" if record["learning_rate"] == chosen[name] else rate
            judged = f"{100 * error_rate([record], VALIDATION):.1f}"
            rows.append(
                [ROWS[name].title, shown, judged, f"{record[VALIDATION]['loss']:.2f}", f"{record['train_loss']:.2f}"]
            )
    return ["method", "learning rate", "WER %", "loss of the validation clips", "training loss"], rows


def error_rate(
    records: list[dict], part: str, keeps: Callable[[str], bool] = lambda name: True, wrong: int = WRONG_WORDS
) -> float:
    """Wrong words of all words, over runs, in the clips whose names `keeps` takes; `wrong`: the count that is meant."""
    counts = [
        row
        for record in records
        for name, row in zip(record[part]["names"], record[part]["counts"], strict=True)
        if keeps(name)
    ]
    total = sum(row[wrong + 1] for row in counts)
    return sum(row[wrong] for row in counts) / total if total else float("nan")


def character_error_rate(records: list[dict], part: str) -> float:
    return error_rate(records, part, wrong=WRONG_CHARACTERS)


def difference(ours: list[dict], others: list[dict]) -> str:
    """The difference of word error rates in points, with its 95 % bootstrap interval over the test clips."""
    if not ours or not others:
        return "-"
    one, other = (np.mean([record[TEST]["counts"] for record in records], axis=0) for records in (ours, others))
    change = one[:, WRONG_WORDS] - other[:, WRONG_WORDS]
    words = one[:, WORDS]
    draws = np.random.default_rng(0).integers(len(words), size=(NUM_RESAMPLES, len(words)))
    low, high = np.percentile(100 * change[draws].sum(axis=1) / words[draws].sum(axis=1), [2.5, 97.5])
    return f"{100 * change.sum() / words.sum():+.1f} ({low:+.1f} to {high:+.1f})"


def voice_of(name: str) -> str:
    """Of a clip: its folder."""
    return PurePosixPath(name).parent.name


def names_are(names: str) -> Callable[[str], bool]:
    return lambda name: PurePosixPath(name).name.startswith(names)
