"""Clips of a data set on the Hub while it is being fetched: nothing is stored, clips are decoded as they come."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import datasets
import fsspec
import numpy as np
import torch

from .clips import DataError, quoted
from .decoding import BadAudioError, check_seconds, load_waveform
from .features import model_inputs
from .hub import check_columns


logger = logging.getLogger(__name__)


@dataclass
class UndecodedAudio(datasets.Audio):
    """An audio column as it is stored: {"bytes": ..., "path": ...}, one of them possibly None.

    A stream of audio files would need torchcodec under `datasets.Audio(decode=False)` too.
    """

    decode: bool = False

    def encode_example(self, value: Any) -> Any:
        """Return the path or bytes as they are."""
        return {"bytes": None, "path": value} if isinstance(value, str) else value


class StreamedClips(torch.utils.data.IterableDataset):
    """The clips of one split of a data set, one after the other.

    Items are {"waveform": `(samples,)`, float32, mono, full scale +-1; "labels": the index in `labels`, or for a column
    of lists a 0/1 vector `(labels,)`, float32}. Workers of a `DataLoader` share the files of the data set between them.
    The length is not known, so the Trainer needs `max_steps`.

    Args:
        name: a data set on the Hub, a local folder, or a format of `datasets.load_dataset` such as "parquet".
        split: the split to read.
        sampling_rate: of the waveforms, in Hz.
        config_name: the configuration of the data set.
        audio_column: the column with the audio.
        label_column: the column with the labels.
        labels: the labels in order; None: those that the data set declares.
        min_seconds: shorter clips cannot be used.
        max_seconds: longer clips are cut to this length.
        skip_bad_files: leave out clips that cannot be used, instead of raising `BadAudioError` at the first.
        shuffle_buffer: draw each clip from as many that are kept waiting, undecoded; 0: the order of the data set.
        seed: of that order; `set_epoch` changes it too.
        load_options: for `datasets.load_dataset`: data_files, revision, ...

    Raises:
        ValueError: `max_seconds` is not above 0.
        DataError: a column is missing, or no labels are declared or given; while iterating: a clip's label is missing
            or not one of `labels`.
        BadAudioError: while iterating: a clip cannot be used.
    """

    def __init__(
        self,
        name: str,
        split: str,
        sampling_rate: int,
        *,
        config_name: Optional[str] = None,
        audio_column: str = "audio",
        label_column: str = "label",
        labels: Optional[Sequence[str]] = None,
        min_seconds: float = 0.0,
        max_seconds: Optional[float] = None,
        skip_bad_files: bool = False,
        shuffle_buffer: int = 0,
        seed: int = 0,
        **load_options: Any,
    ) -> None:
        check_seconds(max_seconds)
        rows = datasets.load_dataset(name, config_name, split=split, streaming=True, **load_options)
        check_columns(name, rows.column_names or [], audio_column=audio_column, label_column=label_column)
        rows = rows.cast_column(audio_column, UndecodedAudio()).select_columns([audio_column, label_column])
        self.rows = rows.shuffle(seed=seed, buffer_size=shuffle_buffer) if shuffle_buffer else rows
        self.name, self.split, self.sampling_rate = name, split, sampling_rate
        self.audio_column, self.label_column = audio_column, label_column
        self.min_seconds, self.max_seconds, self.skip_bad_files = min_seconds, max_seconds, skip_bad_files
        feature = rows.features[label_column]
        self.multi_label = hasattr(feature, "feature")
        self.declared = getattr(getattr(feature, "feature", feature), "names", None)
        self.labels = list(labels or self.declared or [])
        self.positions = {label: index for index, label in enumerate(self.labels)}
        if not self.labels:
            raise DataError(
                f"{name}: column {label_column!r} does not declare its labels, and a stream cannot be searched for "
                "them. Give them as `labels`, in the order of the model's outputs."
            )

    def set_epoch(self, epoch: int) -> None:
        """Shuffle in another order in another epoch; the Trainer calls it."""
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index, row in enumerate(self.rows):
            audio = row[self.audio_column]
            source = audio["bytes"]
            if source is None:
                with fsspec.open(audio["path"], "rb") as file:
                    source = file.read()
            try:
                waveform = load_waveform(source, self.sampling_rate, self.min_seconds, max_seconds=self.max_seconds)
            except ValueError as error:
                name = f"{self.split}[{index}] {audio['path'] or ''}".strip()
                if not self.skip_bad_files:
                    raise BadAudioError({name: str(error)}, index + 1) from None
                logger.warning("Left out %s: %s", name, error)
                continue
            yield {"waveform": waveform, "labels": self._target(row[self.label_column], index)}

    def _target(self, value: Any, index: int) -> Union[int, np.ndarray]:
        values = value if isinstance(value, list) else [value]
        positions = [position for position in map(self._position, values) if position is not None]
        if len(positions) < len(values):
            raise DataError(
                f"{self.name}: row {index} of split {self.split!r} has {value!r} in column {self.label_column!r}, "
                f"which is none of the labels {quoted(self.labels)}."
            )
        if not isinstance(value, list):
            return positions[0]
        target = np.zeros(len(self.labels), dtype=np.float32)
        target[positions] = 1
        return target

    def _position(self, label: Union[str, int, None]) -> Optional[int]:
        """Return the index in `labels` of a stored label: a text, or an index in the labels the data set declares."""
        if self.declared is not None and isinstance(label, int):
            label = self.declared[label] if label >= 0 else None
        return self.positions.get(label)


class StreamedInputs(torch.utils.data.IterableDataset):
    """The clips of a stream as the model's inputs.

    Items are what `model_inputs` returns, and "labels" as in `StreamedClips`.

    Args:
        clips: the stream.
        feature_extractor: see `model_inputs`.
    """

    def __init__(self, clips: StreamedClips, feature_extractor: Any) -> None:
        self.clips, self.feature_extractor = clips, feature_extractor

    def set_epoch(self, epoch: int) -> None:
        """Shuffle in another order in another epoch; the Trainer calls it."""
        self.clips.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for clip in self.clips:
            inputs = model_inputs(clip["waveform"], self.feature_extractor)
            yield {**inputs, "labels": clip["labels"]}
