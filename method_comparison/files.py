"""Writing results: a file always holds all of its old or all of its new content."""

import csv
import json
from pathlib import Path
from typing import Any


def write_text(path: Path, content: str) -> None:
    """Write `content` as it is."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a line of column names and one for each of `rows`, one at least."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def write_picture(path: Path, figure) -> None:
    """Write a matplotlib figure; the ending of the name says in which format.

    Raises:
        ValueError: matplotlib has no such format.
    """
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=120, format=path.suffix[1:])
    partial.replace(path)
