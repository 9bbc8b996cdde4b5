"""A labeled or transcribed sound, and a table of them: names, files, labels and texts, no audio."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union


# What splits are called, in folders, columns and data sets of the Hub.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


class DataError(ValueError):
    """The description of the data (folders, metadata.csv, split, fold) cannot be used; the message says why."""


@dataclass(frozen=True)
class Event:
    """A label of a part of a clip.

    Args:
        label: what is heard.
        start: from here, in seconds.
        stop: to here, in seconds.
        place: the file and line that say so, for error messages.
    """

    label: str
    start: float
    stop: float
    place: str = ""


@dataclass(frozen=True)
class Clip:
    """One sound.

    Args:
        name: unique in its data set.
        source: the file, or the bytes of one.
        labels: its labels.
        fold: the fold of the data set that it belongs to.
        split: the split that it belongs to.
        start: where the clip starts in the file, in seconds.
        stop: where it ends, in seconds; None for the end of the file.
        unknown: labels that the clip may or may not have, in data sets that are only partly labeled.
        text: what is said in it, in data sets for speech recognition.
        events: what is heard in it from when to when, in data sets with labels of frames; `labels` are theirs, once each.
    """

    name: str
    source: Union[Path, bytes]
    labels: tuple[str, ...]
    fold: Optional[str] = None
    split: Optional[str] = None
    start: float = 0.0
    stop: Optional[float] = None
    unknown: tuple[str, ...] = ()
    text: Optional[str] = None
    events: Optional[tuple[Event, ...]] = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, bytes):
            object.__setattr__(self, "source", Path(self.source))  # a path may have been given as text


@dataclass
class ClipTable:
    """All clips of a data set.

    Args:
        clips: the clips.
        origin: the folder or the data set, for error messages.
        multi_label: whether a clip can have several labels.
    """

    clips: list[Clip]
    origin: str
    multi_label: bool = False

    @property
    def has_texts(self) -> bool:
        """Whether the clips are transcribed, instead of labeled."""
        return any(clip.text is not None for clip in self.clips)

    @property
    def has_events(self) -> bool:
        """Whether parts of the clips are labeled, instead of whole clips."""
        return any(clip.events is not None for clip in self.clips)


def fold_name(value: object) -> Optional[str]:
    """Return a fold's name as text; 1, 1.0 and "01" are the same fold, None and "" are no fold."""
    text = "" if value is None else str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return text or None
    return str(int(number)) if number.is_integer() else text


def quoted(values: Iterable[str]) -> str:
    """Return the values for an error message, sorted."""
    return ", ".join(repr(value) for value in sorted(values))
