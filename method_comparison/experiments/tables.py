"""The YAML files of the papers' tables: which recipes a file has, and the settings that it gives to each.

A file holds settings and tables. A table has rows and columns; every row in every column is a recipe. Settings of the
file hold for all its tables, settings of a table for all its recipes, settings of a row for the recipes of that row. The
more particular one counts; notes add up. These keys are no settings, and stand in the file or in a table:

- `name`: what the table's recipes are called, with `{column}` and `{row}` in it.
- `columns`: the columns. A table may leave out some of the file's.
- `rows`: by name, each row's settings.
- `main`: the row that adds no word to the name; others add `-` and their name.
- `tables` (of the file): the tables. A file without them is one table.

Where recipes differ in a setting, its value is a mapping by column or by row. Each recipe takes the value of its own
column or row, or that of `others`; where there is neither, the setting is not set. `epochs: {esc50: 25, others: 30}`
means 25 in the column esc50.
"""

import functools
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from peft_audio.utils.arguments import UsageError


LAYOUT = ("name", "columns", "rows", "main")
OTHERS = "others"
NOTHING = object()  # what a mapping has for a recipe of none of its columns or rows


class RecipeError(UsageError):
    """A recipe cannot be used; the message names the file, the field, the rule and the way out."""


class Place(NamedTuple):
    """Where in a table a recipe stands.

    Args:
        column: its column.
        row: its row.
        columns: all columns of the file.
        rows: all rows of the table.
    """

    column: str
    row: str
    columns: frozenset[str]
    rows: frozenset[str]


@functools.cache
def read_tables(path: Path) -> dict[str, dict[str, Any]]:
    """The settings of every recipe in a file, by name: the file's without suffix, and the recipe's own.

    Raises:
        RecipeError: the file cannot be read, misses something of the layout, or has two recipes of one name.
    """
    file, found = _read(path), {}
    tables = file.pop("tables", [{}])
    for table in tables:
        for name, settings in _recipes(path, file, table):
            if name in found:
                raise RecipeError(
                    f"{path}: there are two recipes {name!r}. Rename a row, or change 'name' of a table."
                )
            found[name] = settings
    return found


def _recipes(path: Path, file: Mapping[str, Any], table: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and settings of each recipe in a table."""
    whole = {**file, **table}
    _check_layout(path, whole)
    columns, rows = frozenset((*file.get("columns", ()), *whole["columns"])), frozenset(whole["rows"])
    for row, own in whole["rows"].items():
        for column in whole["columns"]:
            word = "" if row == whole.get("main") else f"-{row}"
            name = whole["name"].format(column=column, row=word)
            yield f"{path.stem}/{name}", _merged((file, table, own), Place(column, row, columns, rows))


def _check_layout(path: Path, table: Mapping[str, Any]) -> None:
    missing = [key for key in ("name", "columns", "rows") if key not in table]
    if missing:
        raise RecipeError(
            f"{path}: {', '.join(map(repr, missing))} of a table missing. Add it to the table or the file."
        )
    words = {entry[1] for entry in string.Formatter().parse(str(table["name"]))} - {None}
    if not words <= {"column", "row"}:
        raise RecipeError(
            f"{path}: 'name' must have no words in braces but {{column}} and {{row}}, got {table['name']!r}."
        )
    if not isinstance(table["columns"], list):
        raise RecipeError(f"{path}: 'columns' must be a list, got {table['columns']!r}.")
    rows = table["rows"]
    if not isinstance(rows, dict) or not all(isinstance(own, dict) for own in rows.values()):
        raise RecipeError(f"{path}: 'rows' must hold the settings of each row, by name, got {rows!r}.")


def _merged(levels: tuple[Mapping[str, Any], ...], place: Place) -> dict[str, Any]:
    """The settings of all levels for the recipe at `place`, the later ones first; notes of every level."""
    picked = [_picked({key: level[key] for key in level if key not in LAYOUT}, place) for level in levels]
    notes = [note for settings in picked for note in settings.get("notes", [])]
    merged = functools.reduce(dict.__or__, picked)
    return merged | ({"notes": notes} if notes else {})


def _picked(value: Any, place: Place) -> Any:
    """`value` with its own in place of every mapping by column or row, `NOTHING` where it has none."""
    if isinstance(value, list):
        return [item for item in (_picked(item, place) for item in value) if item is not NOTHING]
    if not isinstance(value, dict):
        return value
    for own, everyone in ((place.column, place.columns), (place.row, place.rows)):
        if value.keys() & everyone and value.keys() <= {*everyone, OTHERS}:
            return _picked(value.get(own, value.get(OTHERS, NOTHING)), place)
    entries = ((key, _picked(item, place)) for key, item in value.items())
    return {key: item for key, item in entries if item is not NOTHING}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}).") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: no YAML ({error}).") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: must hold fields and values, got {type(content).__name__}.")
    return content
