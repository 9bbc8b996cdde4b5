"""Numbers out of JSON and CSV files, and pictures into files."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from files import write_picture
from matplotlib.figure import Figure

from peft_audio.data import read_rows


def check_picture(name: str) -> None:
    """Raises `ValueError` unless the ending of the file name is one that matplotlib can write."""
    endings = Figure().canvas.get_supported_filetypes()
    if Path(name).suffix[1:] not in endings:
        raise ValueError(f"the file name must end in one of {', '.join(f'.{ending}' for ending in sorted(endings))}.")


def save_picture(path: Path, figure: Figure) -> None:
    """Writes the figure, whole or not at all, and the folders above it.

    Raises:
        ValueError: the file name does not end in a format that matplotlib can write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, figure)


def read_entry(path: Path, *keys: str) -> Any:
    """What a JSON file holds under `keys`, one inside the other.

    Raises:
        ValueError: there is no such file, it is no JSON, or it lacks one of the keys.
    """
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}). Give what a finished run has written.") from None
    except ValueError as error:  # no UTF-8, no JSON
        raise ValueError(f"{path}: no JSON ({error}).") from None
    for depth, key in enumerate(keys):
        if not isinstance(entry, Mapping) or key not in entry:
            inside = " > ".join(keys[:depth]) or "the file"
            known = ", ".join(map(repr, entry)) if isinstance(entry, Mapping) and entry else "no names"
            raise ValueError(f"{path}: {inside} must have {key!r}, it has {known}.")
        entry = entry[key]
    return entry


def read_columns(path: Path, columns: Mapping[str, Callable[[str], Any]]) -> list[list]:
    """The values of some columns of a CSV file whose first line names them.

    Args:
        path: the file; it may have further columns.
        columns: by name, what makes a value of the text.

    Returns:
        For each of `columns` the values of all lines.

    Raises:
        ValueError: there is no such file, a column is missing, or a text is not what its column holds.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Give a CSV file with the columns {', '.join(columns)}.")
    names, rows = read_rows(path)
    for name in columns:
        if name not in names:
            raise ValueError(
                f"{path}: column {name!r} is missing, the columns are {', '.join(map(repr, names)) or 'none'}. The first "
                f"line must name the columns {', '.join(columns)}, separated by commas."
            )
    return [[_value(path, line, name, row[name], make) for line, row in rows] for name, make in columns.items()]


def _value(path: Path, line: int, column: str, text: str, make: Callable[[str], Any]) -> Any:
    try:
        if text:
            return make(text)
    except ValueError:
        pass
    wanted = "filled in" if make is str else "a number"
    raise ValueError(f"{path} line {line}: column {column!r} must be {wanted}, it is {text!r}.")
