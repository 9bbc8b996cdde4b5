"""Tables and the picture of the comparison on a real model, from its records alone."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

import numpy as np
from comparison_runs import markdown
from cycler import cycler
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure
from plots.files import check_picture, save_picture
from real_model_rows import ROWS
from rich.console import Console


NUM_RESAMPLES = 2000
BUDGETS = {"1 minute": 60, "3 minutes": 180, "10 minutes": 600}  # seconds of one core
CLAIMS = {  # the papers' order: a row, and what it is at least as accurate as
    "prompts - head alone": ("embedding_prompt", "linear_probe"),
    "parallel MLP - prompts": ("parallel_mlp", "embedding_prompt"),
    "IPET - parallel MLP": ("ipet", "parallel_mlp"),
    "IPET - full fine-tuning": ("ipet", "full"),
    "side network - head alone": ("side_mlp", "linear_probe"),
    "side network, convolutions - IPET": ("side_conv", "ipet"),
    "side network - weighted layer sum": ("side_mlp", "layer_sum"),
    "IPET with the paper's adapter - full fine-tuning": ("ipet_paper", "full"),
}
REFERENCES = ("linear_probe", "lora")


def print_report(records: list[dict], timed: list[dict], plot: str | None = None) -> None:
    """Prints the tables as Markdown, and draws accuracy over shots.

    Args:
        records: of the runs to compare.
        timed: of runs on a CPU, at least one of each row, that say what a training costs there.
        plot: the picture to write; None: no picture.

    Raises:
        ValueError: the picture's name does not end in a format that matplotlib can write.
    """
    if plot is not None:
        check_picture(plot)
    records = with_cpu_seconds(records, timed)
    console = Console(width=200, highlight=False, markup=False)
    for shots in groups_of(records):
        title = "all training clips" if shots is None else f"{shots} training clips a class"
        console.print(f"\n{title}\n")
        console.print(markdown(*table([record for record in records if record["shots"] == shots])), soft_wrap=True)
    console.print("\nyou have N clips and M minutes of one core: take this\n")
    console.print(markdown(*recommendations(records)), soft_wrap=True)
    console.print("\nthe order that the papers claim\n")
    console.print(markdown(*claims(records)), soft_wrap=True)
    if plot is not None:
        save_picture(Path(plot), draw(records))


def recommendations(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: by training clips of a class the most accurate method that takes no longer than each of `BUDGETS`.

    The last column has the fastest of all that is not worse than the best for certain: the 95 % interval of its difference
    to the best includes zero.
    """
    header = ["training clips of a class", *BUDGETS, "fastest that is not worse for certain"]
    rows = []
    for shots in groups_of(records):
        group = [record for record in records if record["shots"] == shots]
        seconds = {name: mean(r["seconds"] for r in group if r["row"] == name) for name in {r["row"] for r in group}}
        seconds = {name: seconds[name] for name in ROWS if name in seconds}
        cells = []
        for budget in BUDGETS.values():
            names = [name for name in seconds if seconds[name] <= budget]
            cells.append(described(group, most_accurate(group, names)) if names else "-")
        best = most_accurate(group, list(seconds))
        fast = min((name for name in seconds if not is_worse(group, name, best)), key=seconds.__getitem__)
        rows.append(["all (32)" if shots is None else str(shots), *cells, described(group, fast)])
    return header, rows


def claims(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: for each pair of `CLAIMS` the difference of accuracies in points, by training clips of a class."""
    groups = {shots: [record for record in records if record["shots"] == shots] for shots in groups_of(records)}
    header = ["points, by clips of a class", *("all (32)" if shots is None else str(shots) for shots in groups)]
    return header, [
        [title, *(difference(group, *pair) for group in groups.values())] for title, pair in CLAIMS.items()
    ]


def most_accurate(records: list[dict], names: list[str]) -> str:
    return max(names, key=lambda name: mean(r["accuracy"] for r in records if r["row"] == name))


def described(records: list[dict], name: str) -> str:
    own = [record for record in records if record["row"] == name]
    return (
        f"{ROWS[name].title}: {100 * mean(r['accuracy'] for r in own):.1f} %, {mean(r['seconds'] for r in own):.0f} s"
    )


def with_cpu_seconds(records: list[dict], timed: list[dict]) -> list[dict]:
    """The records with the seconds that one CPU core works for a run: its own where it ran on one.

    Others have as many a clip and epoch as the timed runs of the row.
    """
    cost = {}
    for name in {record["row"] for record in timed}:
        own = [record for record in timed if record["row"] == name]
        cost[name] = sum(r["seconds"] for r in own) / sum(r["training_clips"] * r["epochs"] for r in own)
    return [r if r["device"] == "CPU" else r | {"seconds": seconds_of(r, cost)} for r in records]


def seconds_of(record: dict, cost: dict[str, float]) -> float:
    return cost.get(record["row"], float("nan")) * record["training_clips"] * record["epochs"]


def groups_of(records: list[dict]) -> list[int | None]:
    """The numbers of training clips that there are records of, all clips last."""
    return sorted({record["shots"] for record in records}, key=lambda shots: 10**9 if shots is None else shots)


def is_worse(records: list[dict], name: str, best: str) -> bool:
    if name == best:
        return False
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


def draw(records: list[dict]) -> Figure:
    """Accuracy over training clips a class, a line a method, with bands of one standard error over the draws."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(cycler(linestyle=["-", "--"]) * cycler(color=TABLEAU_COLORS.values()))
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
