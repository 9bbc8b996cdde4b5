"""Lines of a metadata.csv: the values of each, and the clip that it is about."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, TextIO

from .clips import DataError, fold_name, quoted


@dataclass(frozen=True)
class ClipRow:
    """A line about a clip.

    Args:
        path: the file that holds the line.
        line: its number.
        values: by column.
        name: of the clip, relative to the data set's folder.
        source: the clip's file.
        split: that of the metadata's folder, if any.
    """

    path: Path
    line: int
    values: dict[str, str]
    name: str
    source: Path
    split: Optional[str]

    @property
    def place(self) -> str:
        """The file and the line, for error messages."""
        return f"{self.path} line {self.line}"

    @property
    def fold_and_split(self) -> dict[str, Any]:
        """The clip's `fold` and `split`."""
        return {"fold": fold_name(self.values.get("fold")), "split": self.values.get("split", self.split)}


def read_clip_rows(
    path: Path, root: Path, columns: Sequence[str], split: Optional[str], may_be_empty: Sequence[str] = ()
) -> list[ClipRow]:
    """Read a metadata.csv.

    Args:
        path: of the file.
        root: the data set's folder.
        columns: that it must have, besides file_name.
        split: that of the file's folder, if any.
        may_be_empty: those of `columns` that need no value.

    Raises:
        DataError: as `read_rows`, there are no rows, or a column or a value is missing.
    """
    needed = ("file_name", *columns)
    found, rows = read_rows(path)
    missing = [name for name in needed if name not in found]
    if missing:
        raise DataError(
            f"{path}: column {quoted(missing)} is missing, the columns are {quoted(found) or 'none'}. The first "
            f"line must name the columns {', '.join(needed[:-1])} and {needed[-1]} (and optionally fold or split), separated "
            "by commas."
        )
    if not rows:
        raise DataError(f"{path}: lists no clips.")
    filled = [name for name in (*needed, "fold", "split") if name in found and name not in may_be_empty]
    for line, row in rows:
        for column in [name for name in filled if not row[name]]:
            raise DataError(f"{path} line {line}: column {column!r} is empty. Fill it in or remove the line.")
    return [ClipRow(path, line, row, *_file_of(path, root, row["file_name"]), split) for line, row in rows]


def _file_of(path: Path, root: Path, file_name: str) -> tuple[str, Path]:
    # x/../a.wav is a.wav: a clip under two names could both train and test.
    source = Path(os.path.normpath(path.parent / file_name))
    inside = source.is_relative_to(os.path.normpath(root))
    return source.relative_to(os.path.normpath(root)).as_posix() if inside else str(source), source


def take_place(row: ClipRow, places: dict[str, str]) -> None:
    """Note in `places`, by clip name, that a line lists a clip.

    Raises:
        DataError: another line has listed it.
    """
    if row.name in places:
        file_name = row.values["file_name"]
        raise DataError(f"{row.place}: {file_name!r} is listed already, in {places[row.name]}. Remove one of the two.")
    places[row.name] = f"line {row.line}" if row.split is None else row.place


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read a CSV file whose first line names the columns.

    Returns:
        The column names, and for every row its line number and its values by column, without blanks around them.

    Raises:
        DataError: it cannot be read or is no CSV file in UTF-8, a column is there twice, or a line has more values than
            columns; names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = _read_lines(path, file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a comma-separated text file in UTF-8 ({error}).") from None
    (first, columns), *others = lines or [(1, [])]
    twice = [name for name, count in Counter(columns).items() if name and count > 1]
    if twice:
        raise DataError(
            f"{path} line {first}: column {quoted(twice)} is there twice. Rename or remove one of the two."
        )
    rows = []
    for line, values in others:
        if len(values) > len(columns):
            raise DataError(f"{path} line {line}: more values than columns. Put quotes around a value with a comma.")
        values += [""] * (len(columns) - len(values))
        rows.append((line, dict(zip(columns, values, strict=True))))
    return columns, rows


def _read_lines(path: Path, file: TextIO) -> list[tuple[int, list[str]]]:
    """Return the number of each line and its values, without blanks around them; no lines that have none."""
    reader = csv.reader(file, skipinitialspace=True, strict=True)
    lines, end = [], 0
    try:
        for values in reader:
            end = reader.line_num
            if any("\0" in value for value in values):
                raise DataError(f"{path} line {end}: has a character of code 0. Save the file as plain text in UTF-8.")
            values = [value.strip() for value in values]
            if any(values):  # spreadsheets end with lines of commas alone
                lines.append((end, values))
    except csv.Error as error:
        raise DataError(
            f"{path} line {end + 1}: not comma-separated text ({error}). Close every quote, and write a quote within "
            "quotes twice."
        ) from None
    return lines
