"""The table of the ESC-10 comparison, for the terminal and as Markdown."""

from esc10_rows import row_of, title_of
from rich.console import Console
from rich.table import Table


HEADER = [
    "method",
    "accuracy %",
    "std over seeds",
    "std over folds",
    "trainable",
    "without head",
    "share of backbone %",
    "s per run",
    "runs",
]


def print_table(results: dict, sizes: bool = False) -> None:
    """Prints the rows of a results file that has its summary; with `sizes`, each row's other sizes too."""
    header, rows = table_rows(results["summary"], sizes)
    table = Table(*header, title=f"ESC-10, {results['settings']['model']}, {results['settings']['epochs']} epochs")
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)
    print("\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]))


def table_rows(summary: dict[str, dict], sizes: bool = False) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the table, as text; with `sizes`, each row's other sizes around it, by size."""
    names = [name for name in summary if sizes or name == row_of(name)]
    rows = list(dict.fromkeys(map(row_of, names)))
    names.sort(key=lambda name: (rows.index(row_of(name)), summary[name]["share_of_backbone"]))
    return HEADER, [[title_of(name), *cells(summary[name])] for name in names]


def cells(row: dict) -> list[str]:
    return [
        percent(row["accuracy"]),
        percent(row["accuracy_std_over_seeds"]),
        percent(row["accuracy_std_over_folds"]),
        f"{row['trainable_parameters']:,}",
        f"{row['trainable_without_head']:,}",
        f"{100 * row['share_of_backbone']:.2f}",
        f"{row['train_seconds']:.0f}",
        str(row["test_runs"]),
    ]


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
