"""Labels of parts of clips: what is heard from when to when, as a metadata.csv lists it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Optional

from .clips import Clip, DataError, Event, quoted
from .decoding import clip_seconds
from .metadata import ClipRow, read_clip_rows, take_place


EVENT_COLUMNS = ("label", "start", "stop")
ROUNDING = 0.01  # seconds by which an event may end behind its clip: annotations are rounded


def read_event_clips(path: Path, root: Path, places: dict[str, str], split: Optional[str]) -> list[Clip]:
    """Return the clips of a metadata.csv that has a line for each event.

    Args:
        path: of the file.
        root: the data set's folder, which the clips' names are relative to.
        places: the names of clips that were listed before, and where; those of this file are added.
        split: that of the file's folder, if any.

    Raises:
        DataError: a line is of no use; names it, the column and the value.
    """
    by_clip: dict[str, list[ClipRow]] = {}
    for row in read_clip_rows(path, root, EVENT_COLUMNS, split, may_be_empty=EVENT_COLUMNS):
        if row.name not in by_clip:
            take_place(row, places)
        by_clip.setdefault(row.name, []).append(row)
    return [_clip(rows) for rows in by_clip.values()]


def _clip(rows: list[ClipRow]) -> Clip:
    first = rows[0]
    for row in rows[1:]:
        for column in ("fold", "split"):
            value, other = row.values.get(column), first.values.get(column)
            if value != other:
                raise DataError(
                    f"{row.place}: column {column!r} is {value!r}, but {other!r} in line {first.line} for the same clip. A "
                    "clip cannot both train and test."
                )
    events = [_event(row) for row in rows]
    for row, event in zip(rows, events, strict=True):
        if event is None and len(rows) > 1:
            raise DataError(
                f"{row.place}: says that {row.values['file_name']!r} has no event, but it has {len(rows)} lines. Remove this "
                f"one, or fill in {', '.join(EVENT_COLUMNS)}."
            )
    found = tuple(event for event in events if event is not None)
    labels = tuple(dict.fromkeys(event.label for event in found))
    return Clip(first.name, first.source, labels, events=found, **first.fold_and_split)


def _event(row: ClipRow) -> Optional[Event]:
    """Return the event of a line, None if it has none."""
    empty = [name for name in EVENT_COLUMNS if not row.values[name]]
    if len(empty) == len(EVENT_COLUMNS):
        return None
    if empty:
        raise DataError(
            f"{row.place}: column {quoted(empty)} is empty. Fill it in, or leave {', '.join(EVENT_COLUMNS)} all empty for a "
            "clip without events."
        )
    start, stop = (_seconds(row, name) for name in EVENT_COLUMNS[1:])
    if stop <= start:
        raise DataError(
            f"{row.place}: stop must lie behind start, got start {row.values['start']} and stop {row.values['stop']}."
        )
    return Event(row.values["label"], start, stop, row.place)


def _seconds(row: ClipRow, column: str) -> float:
    text = row.values[column]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise DataError(f"{row.place}: column {column!r} must be a number of seconds from 0 up, got {text!r}.")
    return value


def check_ends(clips: Iterable[Clip]) -> None:
    """Check that no event ends behind its clip. Clips that no header tells the length of are left to decoding.

    Raises:
        DataError: one does; names its line.
    """
    for clip in clips:
        seconds = clip_seconds(clip) if clip.events else None
        late = [event for event in clip.events or () if seconds is not None and event.stop > seconds + ROUNDING]
        if late:
            raise DataError(
                f"{late[0].place}: the event ends at {late[0].stop:g} s, but {clip.name!r} has only {seconds:.3f} s. Correct "
                "start and stop, which are in seconds."
            )
