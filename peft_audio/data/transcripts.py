"""Transcribed clips as training data for speech recognition: features, and the tokens of what is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch

from .clips import Clip
from .decoding import clip_seconds, report_bad_files
from .frames import SequenceCollator
from .splits import Splits
from .training_data import compute_features, describe_splits


class TranscribedDataset(torch.utils.data.Dataset):
    """Features and tokens by index, as a Trainer takes them.

    An item has the clip's features, under "labels" its tokens and, if `with_indices`, under "clips" its own index: then
    `SpeechTrainer` gives metrics these indices instead of the tokens.

    Args:
        clips: the clips, in this order, each with its text.
        features: by clip name.
        tokens: by clip name.
        with_indices: whether items have their index.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        features: Mapping[str, Mapping[str, np.ndarray]],
        tokens: Mapping[str, Sequence[int]],
        with_indices: bool = False,
    ) -> None:
        self.names, self.texts = [clip.name for clip in clips], [str(clip.text) for clip in clips]
        self.features, self.tokens, self.with_indices = features, tokens, with_indices

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        item = {**self.features[name], "labels": np.asarray(self.tokens[name])}
        return {**item, "clips": index} if self.with_indices else item


class SpeechCollator(SequenceCollator):
    """Makes batches of items of `TranscribedDataset`: tokens are padded with -100, which losses leave out.

    Args:
        feature_extractor: pads clips of different lengths to the longest, with its mask.
    """

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch of tensors by name, `labels` among them."""
        clips = {"clips": torch.tensor([item["clips"] for item in items])} if "clips" in items[0] else {}
        inputs = [{name: value for name, value in item.items() if name != "clips"} for item in items]
        tokens = [np.asarray(item["labels"], dtype=np.int64) for item in items]
        return super().__call__([{**item, "labels": ids} for item, ids in zip(inputs, tokens, strict=True)]) | clips


@dataclass(frozen=True)
class SpeechData:
    """Data sets for a recognizer; `SpeechCollator` makes batches of their items.

    Args:
        train: to train on.
        evaluation: to evaluate on during training; the test clips where there are no validation clips.
        test: for the final result.
        description: how the data were split, for a model card.
        skipped: how many files could not be used and were left out.
    """

    train: TranscribedDataset
    evaluation: TranscribedDataset
    test: TranscribedDataset
    description: str
    skipped: int = 0


def prepare_transcribed(
    splits: Splits,
    feature_extractor: Any,
    encode: Callable[[str], Sequence[int]],
    *,
    fold: Optional[str] = None,
    min_seconds: float = 0.0,
    max_seconds: Optional[float] = None,
    cache_dir: Union[str, Path, None] = None,
    skip_bad_files: bool = False,
) -> SpeechData:
    """Compute the features and tokens of transcribed clips.

    Args:
        splits: the clips, from `choose_splits`.
        feature_extractor: of the model.
        encode: makes a text's tokens.
        fold: that `choose_splits` was given, for the description.
        min_seconds: shorter clips cannot be used; see `minimum_seconds`.
        max_seconds: longer clips cannot be used either: cut, they would not say all of their text.
        cache_dir: keep the features in this folder, for other runs too; in memory if None.
        skip_bad_files: leave files out that cannot be used.

    Raises:
        DataError: no clips are left to train or to test on.
        BadAudioError: some files cannot be used, and none may be skipped.
    """
    limits = {"min_seconds": min_seconds, "max_seconds": max_seconds}
    features, bad = _features(splits.clips, feature_extractor, limits, cache_dir, skip_bad_files)
    splits = splits.without(bad)
    tokens = {clip.name: encode(str(clip.text)) for clip in splits.clips}

    def dataset(clips: list[Clip], with_indices: bool) -> TranscribedDataset:
        return TranscribedDataset(clips, features, tokens, with_indices)

    test = dataset(splits.test, True)
    evaluation = dataset(splits.validation, True) if splits.validation else test
    return SpeechData(dataset(splits.train, False), evaluation, test, describe_splits(splits, fold), len(bad))


def _features(
    clips: list[Clip], extractor: Any, limits: dict[str, Any], cache_dir: Union[str, Path, None], skip_bad_files: bool
) -> tuple[Mapping[str, Mapping[str, Any]], list[str]]:
    """Return the features by clip name, and the names of the clips left out."""
    too_long = {} if limits["max_seconds"] is None else longer_than(clips, limits["max_seconds"])
    report_bad_files(too_long, len(clips), skip_bad_files)
    rest = [clip for clip in clips if clip.name not in too_long]
    features, bad = compute_features(rest, extractor, limits, cache_dir, skip_bad_files)
    return features, [*too_long, *bad]


def longer_than(clips: Sequence[Clip], max_seconds: float) -> dict[str, str]:
    """Return the reasons, by name, why clips are too long; those that no header tells the length of are left to decoding.

    Args:
        clips: the clips.
        max_seconds: the longest.
    """
    seconds = {clip.name: clip_seconds(clip) for clip in clips}
    return {
        name: f"too long ({length:.1f} s, the longest is {max_seconds:g} s: max_seconds)"
        for name, length in seconds.items()
        if length is not None and length > max_seconds
    }
