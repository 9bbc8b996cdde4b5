"""Lists the clips of a Hugging Face `audiofolder`: file names and labels, no audio is read."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Optional, Union

from .clips import SPLIT_WORDS, Clip, ClipTable, DataError, fold_name, quoted


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


def read_audiofolder(data_dir: Union[str, Path]) -> ClipTable:
    """List the clips of a Hugging Face `audiofolder`.

    Args:
        data_dir: a folder with a metadata.csv, whose columns are file_name, label (several labels separated by `;`) and
            optionally fold or split; or with one folder for each class. Both can also lie in folders named train,
            validation and test.

    Raises:
        DataError: the folder or a metadata.csv cannot be used; names the file, line, column and value.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise DataError(f"{data_dir}: not a folder. Give the folder that holds the audio files.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not (root / "metadata.csv").is_file() and folders and all(path.name.lower() in SPLIT_WORDS for path in folders):
        clips = [clip for folder in folders for clip in _read_part(folder, root, split=folder.name)]
    else:
        clips = _read_part(root, root)
    return ClipTable(clips, str(data_dir), any(len(clip.labels) > 1 for clip in clips))


def _read_part(folder: Path, root: Path, split: Optional[str] = None) -> list[Clip]:
    metadata = folder / "metadata.csv"
    return _read_metadata(metadata, root, split) if metadata.is_file() else _read_class_folders(folder, root, split)


def _read_metadata(path: Path, root: Path, split: Optional[str] = None) -> list[Clip]:
    """Return the clips that a metadata.csv lists, named relative to `root`; `split` is that of its folder, if any."""
    columns, rows = read_rows(path)
    missing = [name for name in ("file_name", "label") if name not in columns]
    if missing:
        raise DataError(
            f"{path}: column {quoted(missing)} is missing, the columns are {quoted(columns) or 'none'}. The first "
            "line must name the columns file_name and label (and optionally fold or split), separated by commas."
        )
    clips: list[Clip] = []
    lines: dict[str, int] = {}
    for line, row in rows:
        for column in [name for name in ("file_name", "label", "fold", "split") if name in columns and not row[name]]:
            raise DataError(f"{path} line {line}: column {column!r} is empty. Fill it in or remove the line.")
        source = path.parent / row["file_name"]
        name = source.relative_to(root).as_posix() if source.is_relative_to(root) else str(source)
        if name in lines:
            raise DataError(f"{path} line {line}: {row['file_name']!r} is listed already, in line {lines[name]}.")
        lines[name] = line
        labels = tuple(dict.fromkeys(label.strip() for label in row["label"].split(";") if label.strip()))
        if not labels:
            raise DataError(f"{path} line {line}: column 'label' names no label, it is {row['label']!r}.")
        clips.append(Clip(name, source, labels, fold_name(row.get("fold")), row.get("split", split)))
    if not clips:
        raise DataError(f"{path}: lists no clips.")
    return clips


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read a CSV file whose first line names the columns.

    Returns:
        The column names, and for every row its line number and its values by column, without blanks around them.

    Raises:
        DataError: it is no CSV file in UTF-8, or a line has more values than columns.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, restval="")
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a comma-separated text file in UTF-8 ({error}).") from None
    for line, row in rows:
        if None in row:
            raise DataError(f"{path} line {line}: more values than columns. Put quotes around a value with a comma.")
    return list(reader.fieldnames), [
        (line, {name: value.strip() for name, value in row.items()}) for line, row in rows
    ]


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
