"""Scripts in cells, which VS Code and Jupytext open as notebooks: run them with their text, or write the notebook.

A cell starts with a line `# %%`, followed by `[markdown]` for text (every line of it a comment) or by `tags=[...]`.
What stands before the first cell belongs to none. The cell tagged "parameters" sets variables that the command line
(and papermill, with the notebook) can set otherwise.
"""

import argparse
import ast
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown


PARAMETERS = "parameters"
MARKER = re.compile(r"# %%(?P<markdown> \[markdown\])?( tags=(?P<tags>\[.*\]))?\s*")


@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        cell_type: "markdown" or "code", as in a notebook.
        source: its text, without the comment signs if it is Markdown.
        line: where the source starts in the script, from 1.
        tags: of the cell.
    """

    cell_type: str
    source: str
    line: int
    tags: tuple[str, ...] = ()


def read_cells(path: Path) -> list[Cell]:
    """The cells of the script at `path`, in order.

    Raises:
        ValueError: a line that starts with `# %%` says something else behind it, or a line of a Markdown cell is no
            comment.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith("# %%")]
    return [make_cell(path, lines, *limits) for limits in zip(starts, [*starts[1:], len(lines)])]


def make_cell(path: Path, lines: list[str], start: int, end: int) -> Cell:
    """The cell whose marker is line `start` (from 0) and whose source ends before line `end`."""
    marker = MARKER.fullmatch(lines[start])
    if marker is None:
        raise ValueError(
            f"{path}, line {start + 1}: a cell starts with '# %%', '# %% [markdown]' or '# %% tags=[\"name\"]', got "
            f"{lines[start]!r}. Write one of these."
        )
    source, tags = lines[start + 1 : end], tuple(ast.literal_eval(marker["tags"] or "()"))
    if marker["markdown"]:
        for number, line in enumerate(source, start + 2):
            if line.strip() and not line.startswith("#"):
                raise ValueError(
                    f"{path}, line {number}: Markdown cells are comments, got {line!r}. Put a # before it."
                )
        source = [line.removeprefix("#").removeprefix(" ") for line in source]
    text = "\n".join(source).rstrip()
    return Cell("markdown" if marker["markdown"] else "code", text, start + 2, tags)


def to_notebook(cells: list[Cell]) -> dict[str, Any]:
    """The content of an .ipynb file, nbformat 4.5, with cells that have not been run."""

    def convert(index: int, cell: Cell) -> dict[str, Any]:
        metadata = {"tags": list(cell.tags)} if cell.tags else {}
        entry = {"cell_type": cell.cell_type, "id": f"cell-{index}", "metadata": metadata}
        if cell.cell_type == "code":
            entry |= {"execution_count": None, "outputs": []}
        return entry | {"source": cell.source.splitlines(keepends=True)}

    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": [convert(index, cell) for index, cell in enumerate(cells, 1)],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def run_cells(path: Path, parameters: dict[str, int] | None = None) -> dict[str, Any]:
    """Runs the script at `path` cell by cell, and prints its Markdown cells on the way.

    Args:
        parameters: other values for variables that the cell tagged "parameters" sets.

    Returns:
        The variables of the script at its end.
    """
    console, variables = Console(), {"__name__": "__main__"}
    for cell in read_cells(path):
        if cell.cell_type == "markdown":
            console.print(Markdown(cell.source), "")
            continue
        exec(compiled(cell, path), variables)
        if PARAMETERS in cell.tags:
            variables.update(parameters or {})
        console.print()
    return variables


def compiled(cell: Cell, path: Path):
    # The empty lines let a traceback point at the script.
    return compile("\n" * (cell.line - 1) + cell.source, str(path), "exec")


def default_parameters(path: Path) -> dict[str, int]:
    """The variables that the cell tagged "parameters" sets: counts, from 1."""
    variables = {"__builtins__": {}}
    for cell in read_cells(path):
        if PARAMETERS in cell.tags:
            exec(compiled(cell, path), variables)
    return {name: value for name, value in variables.items() if name != "__builtins__"}


def parse_arguments(path: Path, description: str, arguments: list[str] | None = None) -> tuple[Path | None, dict]:
    """The notebook to write, if any, and the parameters; errors end the program with a message."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notebook", type=Path, metavar="FILE", help="write a new notebook (.ipynb), and run nothing")
    for name, value in default_parameters(path).items():
        parser.add_argument(f"--{name.lower()}", dest=name, type=int, default=value, help=f"{value} if left out")
    parameters = vars(parser.parse_args(arguments))
    notebook = parameters.pop("notebook")
    for name, value in parameters.items():
        if value < 1:
            parser.error(f"--{name.lower()} must be 1 or more, got {value}")
    if notebook is not None and notebook.exists():
        parser.error(f"--notebook {notebook}: it is there already, perhaps with your results; choose another name")
    if notebook is not None and not notebook.parent.is_dir():
        parser.error(f"--notebook {notebook}: there is no folder {notebook.parent}; make it first")
    return notebook, parameters


def main(script: str, description: str, arguments: list[str] | None = None) -> None:
    """The command line of a script in cells: runs it, with the parameters given, or writes it as a notebook."""
    path, started = Path(script), time.perf_counter()
    notebook, parameters = parse_arguments(path, description, arguments)
    if notebook is None:
        run_cells(path, parameters)
        Console().print(f"Total {time.perf_counter() - started:.0f} s")
        return
    notebook.write_text(json.dumps(to_notebook(read_cells(path)), indent=1) + "\n", encoding="utf-8")
    print(f"{notebook} written")
