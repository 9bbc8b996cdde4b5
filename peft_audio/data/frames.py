"""Clips with labels of frames as training data: features, and which labels each of a model's frames has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from .clips import Clip, ClipTable, DataError, Event, quoted
from .events import check_ends
from .features import AudioCollator
from .splits import Splits, choose_splits
from .training_data import TrainingData, compute_features, describe_splits


IGNORED = -100  # transformers' mark of targets that do not count


@dataclass(frozen=True)
class FrameGrid:
    """Where the frames of a model lie in time.

    Frame number i sees `window` seconds from `i * hop` on. It has the labels of the events that its center lies in; an event
    that lies between two centers is that of the frame that is nearest to its middle.

    Args:
        count: the number of frames that the model makes of so many samples, or rows of a spectrogram.
        main_input: what the feature extractor calls these.
        window: seconds that a frame sees.
        hop: seconds from one frame to the next.
    """

    count: Callable[[int], int]
    main_input: str
    window: float
    hop: float

    def counts(self, inputs: Mapping[str, np.ndarray]) -> tuple[int, int]:
        """Return how many frames the model makes of a clip, and how many of them are no padding.

        Args:
            inputs: what the feature extractor gives for the clip.
        """
        length = len(inputs[self.main_input])
        mask = inputs.get("attention_mask")
        return self.count(length), self.count(length if mask is None else int(np.sum(mask)))

    def targets(self, events: Sequence[Event], labels: Sequence[str], num_frames: int) -> np.ndarray:
        """Return 1 where a frame has a label, else 0, `(num_frames, labels)` in float32.

        Args:
            events: of the clip.
            labels: label names by index.
            num_frames: number of frames.
        """
        targets = np.zeros((num_frames, len(labels)), dtype=np.float32)
        centers = self.window / 2 + self.hop * np.arange(num_frames)
        for event in events:
            within = (event.start <= centers) & (centers < event.stop)
            if not within.any():
                distance = np.abs(centers - (event.start + event.stop) / 2)
                # What no frame sees, behind the last one or where a clip is cut, has none.
                within = (distance == distance.min(initial=np.inf)) & (distance <= self.window / 2)
            targets[within, labels.index(event.label)] = 1
        return targets


class FrameDataset(torch.utils.data.Dataset):
    """Features and labels of frames by index, as the Trainer takes them.

    An item has the clip's features, and under "labels" 0/1 targets `(frames, labels)`, -100 in frames that are padding.

    Args:
        clips: the clips, in this order, each with its events.
        features: by clip name.
        labels: label names by index.
        grid: where the model's frames lie.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        features: Mapping[str, Mapping[str, np.ndarray]],
        labels: Sequence[str],
        grid: FrameGrid,
    ) -> None:
        self.names, self.events = [clip.name for clip in clips], [clip.events or () for clip in clips]
        self.features, self.labels, self.grid = features, list(labels), grid

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        inputs = self.features[self.names[index]]
        num_frames, num_real = self.grid.counts(inputs)
        targets = np.full((num_frames, len(self.labels)), IGNORED, dtype=np.float32)
        targets[:num_real] = self.grid.targets(self.events[index], self.labels, num_real)
        return {**inputs, "labels": targets}

    def heard(self) -> set[str]:
        """Return the labels that a frame has."""
        found = np.zeros(len(self.labels), dtype=bool)
        for index in range(len(self)):
            found |= (self[index]["labels"] == 1).any(axis=0)
        return {label for label, is_heard in zip(self.labels, found, strict=True) if is_heard}


class SequenceCollator(AudioCollator):
    """Makes batches of items whose labels are sequences: they are padded with -100, which losses leave out.

    Args:
        feature_extractor: pads clips of different lengths to the longest, with its mask.
        device: see `AudioCollator`.
    """

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch of tensors by name, `labels` among them."""
        labels = [torch.as_tensor(item["labels"]) for item in items]
        batch = super().__call__([{**item, "labels": index} for index, item in enumerate(items)])
        return {**batch, "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED)}


def prepare_frames(
    table: ClipTable,
    feature_extractor: Any,
    grid: FrameGrid,
    *,
    fold: Optional[str] = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    min_seconds: float = 0.0,
    max_seconds: Optional[float] = None,
    cache_dir: Union[str, Path, None] = None,
    skip_bad_files: bool = False,
) -> TrainingData:
    """Split clips with labels of frames, and compute their features; `SequenceCollator` makes batches of them.

    Args:
        table: from `read_audiofolder(folder, events=True)`.
        feature_extractor: of the model.
        grid: where the model's frames lie, see `peft_audio.trainer.frame_grid`.
        fold: see `prepare_clips`, and there for all others; the events of a clip that is cut are cut too.
        test_fraction: share of the clips that test in a random split.
        seed: of the random split.
        min_seconds: of a clip that can be used.
        max_seconds: to which longer clips are cut.
        cache_dir: of the features.
        skip_bad_files: leave files out that cannot be used.

    Raises:
        DataError: the data cannot be split, an event ends behind its clip, or a label is in no frame.
        BadAudioError: some files cannot be used, and none may be skipped.
    """
    if not table.has_events:
        raise DataError(
            f"{table.origin}: has labels of whole clips. Read it with read_audiofolder(folder, events=True)."
        )
    splits = choose_splits(table, fold, test_fraction, seed)
    check_ends(splits.clips)
    limits = {"min_seconds": min_seconds, "max_seconds": max_seconds}
    features, skipped = compute_features(splits.clips, feature_extractor, limits, cache_dir, skip_bad_files)
    return _training_data(splits.without(skipped), table.origin, features, grid, fold, len(skipped))


def _training_data(
    splits: Splits,
    origin: str,
    features: Mapping[str, Mapping[str, np.ndarray]],
    grid: FrameGrid,
    fold: Optional[str],
    skipped: int,
) -> TrainingData:
    def dataset(clips: list[Clip]) -> FrameDataset:
        return FrameDataset(clips, features, splits.labels, grid)

    train, test = dataset(splits.train), dataset(splits.test)
    evaluation = dataset(splits.validation) if splits.validation else test
    _check_heard(origin, splits, train, evaluation, test)
    return TrainingData(train, evaluation, test, splits.labels, True, describe_splits(splits, fold), skipped)


def _check_heard(
    origin: str, splits: Splits, train: FrameDataset, evaluation: FrameDataset, test: FrameDataset
) -> None:
    missing = set(splits.labels) - train.heard()
    if missing:
        raise DataError(
            f"{origin}: label {quoted(missing)} is in no frame of the training clips, so it cannot be learned: its events lie "
            "where max_seconds cuts the clips, or behind their last frame."
        )
    for name, part in (("test", test), ("validation", evaluation)):
        if not part.heard():
            raise DataError(f"{origin}: no frame of the {name} clips has a label. Give a longer max_seconds, or none.")
