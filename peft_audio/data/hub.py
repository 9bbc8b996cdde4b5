"""Lists the clips of a data set on the Hub, undecoded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import datasets

from .clips import SPLIT_WORDS, Clip, ClipTable, DataError, fold_name, quoted


def read_hub_dataset(
    name: str,
    config_name: Optional[str] = None,
    audio_column: str = "audio",
    label_column: str = "label",
    text_column: Optional[str] = None,
) -> ClipTable:
    """List the clips of a data set on the Hub.

    Args:
        name: of the data set, or a local folder in the form of one.
        config_name: the configuration of the data set.
        audio_column: the column with the audio.
        label_column: the column with the labels: class indices, texts, or lists of either.
        text_column: the column with what is said, instead of labels.

    Raises:
        DataError: a column is missing, or a clip has no label or nothing is said in it.
    """
    if text_column is not None:
        return _read_transcribed(name, config_name, audio_column, text_column)
    clips: list[Clip] = []
    multi_label = False
    for split, rows in datasets.load_dataset(name, config_name).items():
        check_columns(name, rows.column_names, audio_column=audio_column, label_column=label_column)
        rows = rows.cast_column(audio_column, datasets.Audio(decode=False))
        inner = getattr(rows.features[label_column], "feature", None)
        multi_label = multi_label or inner is not None
        to_text = getattr(inner or rows.features[label_column], "int2str", str)
        for index, row in enumerate(rows):
            labels = row[label_column]
            if labels is None or labels == -1:
                raise DataError(f"{name}: row {index} of split {split!r} has no label in column {label_column!r}.")
            texts = tuple(to_text(label) for label in (labels if isinstance(labels, list) else [labels]))
            clips.append(_clip(f"{split}[{index}]", row[audio_column], texts, row.get("fold"), split))
    return ClipTable(clips, name, multi_label)


def _read_transcribed(name: str, config_name: Optional[str], audio_column: str, text_column: str) -> ClipTable:
    clips: list[Clip] = []
    for split, rows in datasets.load_dataset(name, config_name).items():
        check_columns(name, rows.column_names, audio_column=audio_column, text_column=text_column)
        for index, row in enumerate(rows.cast_column(audio_column, datasets.Audio(decode=False))):
            text = row[text_column]
            if not isinstance(text, str) or not text.strip():
                raise DataError(
                    f"{name}: row {index} of split {split!r} has no text in column {text_column!r}, it is {text!r}."
                )
            clip = _clip(f"{split}[{index}]", row[audio_column], (), row.get("fold"), split)
            clips.append(replace(clip, text=text.strip()))
    return ClipTable(clips, name)


def _clip(place: str, audio: dict[str, Any], labels: tuple[str, ...], fold: object, split: str) -> Clip:
    source = Path(audio["path"]) if audio["bytes"] is None else audio["bytes"]
    return Clip(f"{place} {Path(audio['path'] or '').name}".strip(), source, labels, fold_name(fold), split)


def check_columns(name: str, columns: Iterable[str], **wanted: str) -> None:
    """Check that a data set has the columns in `wanted`, which are by the names of the arguments that give them.

    Raises:
        DataError: one is missing.
    """
    for argument, column in wanted.items():
        if column not in columns:
            raise DataError(f"{name}: {argument} {column!r} is no column of it, its columns are {quoted(columns)}.")


def stream_splits(name: str, config_name: Optional[str] = None) -> dict[str, str]:
    """Find the splits of a data set on the Hub to train, validate and test on.

    Returns:
        The names of the splits by role: "train", "test" and, where there is one, "validation". A validation split
        tests where there is no test split.

    Raises:
        DataError: there is nothing to train or test on.
    """
    found = datasets.get_dataset_split_names(name, config_name)
    roles = {SPLIT_WORDS[split.lower()]: split for split in found if split.lower() in SPLIT_WORDS}
    if "test" not in roles and "validation" in roles:
        roles["test"] = roles.pop("validation")
    if not {"train", "test"} <= roles.keys():
        raise DataError(
            f"{name}: a stream needs a split to train on and one to test on, the splits are {', '.join(found)}. "
            "Without streaming, the test clips are drawn at random."
        )
    return roles
