"""Tables and the picture of the comparison on a real model, from its records alone."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

import numpy as np
from matplotlib.figure import Figure
from plots.files import check_picture, save_picture
from real_model_rows import ROWS
from rich.console import Console


NUM_RESAMPLES = 2000
REFERENCES = ("linear_probe", "lora")


def print_report(records: list[dict], plot: str | None = None) -> None:
    """Prints the tables as Markdown, and draws accuracy over shots.

    Raises:
        ValueError: the picture's name does not end in a format that matplotlib can write.
    """
    if plot is not None:
        check_picture(plot)
    console = Console(width=200, highlight=False, markup=False)
    for shots in groups_of(records):
        title = "all training clips" if shots is None else f"{shots} training clips a class"
        console.print(f"\n{title}\n")
        console.print(markdown(*table([record for record in records if record["shots"] == shots])), soft_wrap=True)
    console.print("\nyou have N clips: take this\n")
    console.print(markdown(*recommendations(records)), soft_wrap=True)
    if plot is not None:
        save_picture(Path(plot), draw(records))


def recommendations(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: by training clips of a class the most accurate method, and the fastest that is not worse for certain.

    A method is not worse for certain where the 95 % interval of its difference to the best includes zero.
    """
    header = [
        "training clips of a class",
        "most accurate",
        "%",
        "CPU s",
        "take",
        "%",
        "CPU s",
        "minus the best",
    ]
    rows = []
    for shots in groups_of(records):
        group = [record for record in records if record["shots"] == shots]
        by_row = {name: [r for r in group if r["row"] == name] for name in ROWS}
        by_row = {name: own for name, own in by_row.items() if own}
        best = max(by_row, key=lambda name: mean(r["accuracy"] for r in by_row[name]))
        good = [name for name in by_row if name == best or not is_worse(group, name, best)]
        fast = min(good, key=lambda name: mean(r["seconds"] for r in by_row[name]))
        cells = [ROWS[best].title, *figures(by_row[best]), ROWS[fast].title, *figures(by_row[fast])]
        rows.append(["all (32)" if shots is None else str(shots), *cells, difference(group, fast, best)])
    return header, rows


def groups_of(records: list[dict]) -> list[int | None]:
    """The numbers of training clips that there are records of, all clips last."""
    return sorted({record["shots"] for record in records}, key=lambda shots: 10**9 if shots is None else shots)


def figures(records: list[dict]) -> list[str]:
    return [f"{100 * mean(r['accuracy'] for r in records):.1f}", f"{mean(r['seconds'] for r in records):.0f}"]


def is_worse(records: list[dict], name: str, best: str) -> bool:
    pairs = paired(records, name, best)
    if not pairs:
        return True  # nothing says that it is not
    _, high = interval([correct(pair[0] for pair in pairs), correct(pair[1] for pair in pairs)])
    return high < 0


def table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: accuracy with its interval, and the difference to each reference, paired over runs and clips."""
    header = ["method", "accuracy %", "95 % interval", "trainable", "CPU s", "runs"]
    header += [f"minus {name}" for name in REFERENCES]
    rows = []
    for name in (name for name in ROWS if any(record["row"] == name for record in records)):
        own = [record for record in records if record["row"] == name]
        low, high = interval([correct(own)])
        cells = [ROWS[name].title, f"{100 * mean(r['accuracy'] for r in own):.1f}", f"{low:.1f} to {high:.1f}"]
        cells += [f"{own[0]['trainable_parameters']:,}", f"{mean(r['seconds'] for r in own):.0f}", str(len(own))]
        rows.append(cells + [difference(records, name, reference) for reference in REFERENCES])
    return header, rows


def difference(records: list[dict], name: str, reference: str) -> str:
    """The difference of accuracies in points, over the runs that both rows have, with its 95 % interval."""
    pairs = paired(records, name, reference)
    if name == reference or not pairs:
        return "-"
    ours, theirs = ([pair[index] for pair in pairs] for index in (0, 1))
    change = 100 * (mean(r["accuracy"] for r in ours) - mean(r["accuracy"] for r in theirs))
    low, high = interval([correct(ours), correct(theirs)])
    return f"{change:+.1f} ({low:+.1f} to {high:+.1f})"


def paired(records: list[dict], name: str, reference: str) -> list[tuple[dict, dict]]:
    by_run: dict[tuple, dict[str, dict]] = defaultdict(dict)
    for record in records:
        by_run[record["shots"], record["fold"], record["seed"]][record["row"]] = record
    return [(run[name], run[reference]) for run in by_run.values() if name in run and reference in run]


def correct(records: Iterable[dict]) -> dict[tuple[str, int], list[float]]:
    """By clip (fold, place in it), whether each run that tested it was right."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for record in records:
        for index, (label, predicted) in enumerate(zip(record["labels"], record["predicted"], strict=True)):
            found[record["fold"], index].append(float(label == predicted))
    return found


def interval(groups: list[dict[tuple[str, int], list[float]]]) -> tuple[float, float]:
    """The 95 % bootstrap interval over clips, in points: of one row's accuracy, or of the first minus the second."""
    clips = sorted(groups[0])
    values = np.array([mean(groups[0][clip]) for clip in clips])
    if len(groups) == 2:
        values = values - np.array([mean(groups[1][clip]) for clip in clips])
    draws = np.random.default_rng(0).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    low, high = np.percentile(100 * values[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def draw(records: list[dict]) -> Figure:
    """Accuracy over training clips a class, a line a method, with bands of one standard error over the draws."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, row in ROWS.items():
        points = []
        for shots in sorted({r["shots"] for r in records if r["row"] == name and r["shots"] is not None}):
            values = [100 * r["accuracy"] for r in records if r["row"] == name and r["shots"] == shots]
            error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
            points.append((shots, mean(values), error))
        if points:
            shots, means, errors = map(np.array, zip(*points, strict=True))
            (line,) = axes.plot(shots, means, marker="o", label=row.title)
            axes.fill_between(shots, means - errors, means + errors, alpha=0.12, color=line.get_color())
    axes.set(xscale="log", xlabel="training clips of each class", ylabel="accuracy, %")
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure
