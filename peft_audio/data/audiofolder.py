"""Lists the clips of a Hugging Face `audiofolder`: file names and labels, no audio is read."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path
from typing import Any, Optional, TextIO, Union

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


def read_audiofolder(data_dir: Union[str, Path], text_column: Optional[str] = None) -> ClipTable:
    """List the clips of a Hugging Face `audiofolder`.

    Args:
        data_dir: a folder with a metadata.csv, whose columns are file_name, label (several labels separated by `;`) and
            optionally fold or split; or with one folder for each class. Both can also lie in folders named train,
            validation and test.
        text_column: the column of metadata.csv with what is said, such as "transcription"; it takes the place of label.

    Raises:
        DataError: the folder or a metadata.csv cannot be used; names the file, line, column and value.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise DataError(f"{data_dir}: not a folder. Give the folder that holds the audio files.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    places: dict[str, str] = {}
    parts: list[tuple[Path, Optional[str]]]
    if not (root / "metadata.csv").is_file() and folders and all(path.name.lower() in SPLIT_WORDS for path in folders):
        parts = [(folder, folder.name) for folder in folders]
    else:
        parts = [(root, None)]
    clips = [clip for folder, split in parts for clip in _read_part(folder, root, places, text_column, split)]
    return ClipTable(clips, str(data_dir), any(len(clip.labels) > 1 for clip in clips))


def _read_part(
    folder: Path, root: Path, places: dict[str, str], text_column: Optional[str], split: Optional[str]
) -> list[Clip]:
    metadata = folder / "metadata.csv"
    if metadata.is_file():
        return _read_metadata(metadata, root, places, text_column, split)
    if text_column is not None:
        raise DataError(
            f"{folder}: holds no metadata.csv, which must name the columns file_name and {text_column} (and optionally "
            "fold or split)."
        )
    return _read_class_folders(folder, root, split)


def _read_metadata(
    path: Path, root: Path, places: dict[str, str], text_column: Optional[str], split: Optional[str]
) -> list[Clip]:
    """Return the clips that a metadata.csv lists, named relative to `root`; `split` is that of its folder, if any.

    `places` has the names of clips that were listed before, and where; those of this file are added.
    """
    columns, rows = read_rows(path)
    target = text_column or "label"
    missing = [name for name in ("file_name", target) if name not in columns]
    if missing:
        raise DataError(
            f"{path}: column {quoted(missing)} is missing, the columns are {quoted(columns) or 'none'}. The first "
            f"line must name the columns file_name and {target} (and optionally fold or split), separated by commas."
        )
    clips: list[Clip] = []
    for line, row in rows:
        for column in [name for name in ("file_name", target, "fold", "split") if name in columns and not row[name]]:
            raise DataError(f"{path} line {line}: column {column!r} is empty. Fill it in or remove the line.")
        # x/../a.wav is a.wav: a clip under two names could both train and test.
        source = Path(os.path.normpath(path.parent / row["file_name"]))
        inside = source.is_relative_to(os.path.normpath(root))
        name = source.relative_to(os.path.normpath(root)).as_posix() if inside else str(source)
        if name in places:
            raise DataError(
                f"{path} line {line}: {row['file_name']!r} is listed already, in {places[name]}. Remove one of the two."
            )
        places[name] = f"line {line}" if split is None else f"{path} line {line}"
        place: dict[str, Any] = {"fold": fold_name(row.get("fold")), "split": row.get("split", split)}
        if text_column is not None:
            clips.append(Clip(name, source, (), text=row[text_column], **place))
            continue
        labels = tuple(dict.fromkeys(label.strip() for label in row["label"].split(";") if label.strip()))
        if not labels:
            raise DataError(f"{path} line {line}: column 'label' names no label, it is {row['label']!r}.")
        clips.append(Clip(name, source, labels, **place))
    if not clips:
        raise DataError(f"{path}: lists no clips.")
    return clips


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
