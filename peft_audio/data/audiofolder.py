"""Lists the clips of a Hugging Face `audiofolder`: file names and labels, no audio is read."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Union

from .clips import SPLIT_WORDS, Clip, ClipTable, DataError, quoted
from .events import EVENT_COLUMNS, read_event_clips
from .metadata import read_clip_rows, take_place


AUDIO_SUFFIXES = frozenset(
    [
        ".aac",
        ".aif",
        ".aifc",
        ".aiff",
        ".au",
        ".caf",
        ".flac",
        ".m4a",
        ".mp3",
        ".mp4",
        ".oga",
        ".ogg",
        ".opus",
        ".sph",
        ".w64",
        ".wav",
        ".wave",
        ".webm",
        ".wma",
    ]
)


def read_audiofolder(
    data_dir: Union[str, Path], text_column: Optional[str] = None, *, events: bool = False
) -> ClipTable:
    """List the clips of a Hugging Face `audiofolder`.

    Args:
        data_dir: a folder with a metadata.csv, whose columns are file_name, label (several labels separated by `;`) and
            optionally fold or split; or with one folder for each class. Both can also lie in folders named train,
            validation and test.
        text_column: the column of metadata.csv with what is said, such as "transcription"; it takes the place of label.
        events: read labels of parts of clips: metadata.csv has the columns file_name, label, start and stop (seconds), and a
            line for each event, or one without label, start and stop for a clip that has none.

    Raises:
        DataError: the folder or a metadata.csv cannot be used; names the file, line, column and value.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise DataError(f"{data_dir}: not a folder. Give the folder that holds the audio files.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    parts: list[tuple[Path, Optional[str]]] = [(root, None)]
    if not (root / "metadata.csv").is_file() and folders and all(path.name.lower() in SPLIT_WORDS for path in folders):
        parts = [(folder, folder.name) for folder in folders]
    places: dict[str, str] = {}
    clips = [clip for part in parts for clip in _read_part(*part, root, places, text_column, events)]
    return ClipTable(clips, str(data_dir), events or any(len(clip.labels) > 1 for clip in clips))


def _read_part(
    folder: Path, split: Optional[str], root: Path, places: dict[str, str], text_column: Optional[str], events: bool
) -> list[Clip]:
    metadata = folder / "metadata.csv"
    if metadata.is_file() and events:
        return read_event_clips(metadata, root, places, split)
    if metadata.is_file():
        return _read_metadata(metadata, root, places, text_column, split)
    if not events and text_column is None:
        return _read_class_folders(folder, root, split)
    columns = EVENT_COLUMNS if events else (text_column,)
    raise DataError(
        f"{folder}: holds no metadata.csv, which must name the columns {', '.join(('file_name', *columns[:-1]))} and "
        f"{columns[-1]} (and optionally fold or split)."
    )


def _read_metadata(
    path: Path, root: Path, places: dict[str, str], text_column: Optional[str], split: Optional[str]
) -> list[Clip]:
    """Return the clips that a metadata.csv lists, named relative to `root`; `split` is that of its folder, if any.

    `places` has the names of clips that were listed before, and where; those of this file are added.
    """
    clips: list[Clip] = []
    for row in read_clip_rows(path, root, [text_column or "label"], split):
        take_place(row, places)
        if text_column is not None:
            clips.append(Clip(row.name, row.source, (), text=row.values[text_column], **row.fold_and_split))
            continue
        labels = tuple(dict.fromkeys(label.strip() for label in row.values["label"].split(";") if label.strip()))
        if not labels:
            raise DataError(f"{row.place}: column 'label' names no label, it is {row.values['label']!r}.")
        clips.append(Clip(row.name, row.source, labels, **row.fold_and_split))
    return clips


def _read_class_folders(folder: Path, root: Path, split: Optional[str] = None) -> list[Clip]:
    """Return the audio files below `folder`, each labeled with the name of the folder that holds it."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    stray = [path.relative_to(root).as_posix() for path in files if path.parent == folder]
    if stray:
        raise DataError(
            f"{folder}: {quoted(stray)} lies in no class folder. Move every file into the folder of its class, or add "
            "a metadata.csv with the columns file_name and label."
        )
    if not files:
        raise DataError(f"{folder}: holds neither a metadata.csv nor class folders with audio files in them.")
    return [Clip(path.relative_to(root).as_posix(), path, (path.parent.name,), None, split) for path in files]
