"""Data sets to train and test on, ready for the Trainer: clips whose features are computed first, or a stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

from torch.utils.data import Dataset

from .clips import Clip, ClipTable
from .feature_cache import FeatureCache
from .features import FeatureDataset, extract_features
from .hub import stream_splits
from .splits import Splits, choose_splits
from .streaming import StreamedClips, StreamedInputs


@dataclass(frozen=True)
class TrainingData:
    """Data sets whose items are what the model takes; `AudioCollator` makes batches of them.

    Args:
        train: to train on.
        evaluation: to evaluate on during training; the test clips where there are no validation clips.
        test: for the final result.
        labels: label names by index.
        multi_label: whether a clip can have several labels.
        description: how the data were split, for a model card.
        skipped: number of files that were left out.
    """

    train: Dataset
    evaluation: Dataset
    test: Dataset
    labels: list[str]
    multi_label: bool
    description: str
    skipped: int = 0


def prepare_clips(
    table: ClipTable,
    feature_extractor: Any,
    *,
    fold: Optional[str] = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    min_seconds: float = 0.0,
    max_seconds: Optional[float] = None,
    cache_dir: Union[str, Path, None] = None,
    skip_bad_files: bool = False,
) -> TrainingData:
    """Split the clips of a data set, and compute their features.

    Args:
        table: from `read_audiofolder` or `read_hub_dataset`.
        feature_extractor: of the model.
        fold: see `choose_splits`, and there for `test_fraction` and `seed`.
        test_fraction: share of the clips that test in a random split.
        seed: of the random split.
        min_seconds: shorter clips cannot be used; see `minimum_seconds`.
        max_seconds: longer clips are cut to this length.
        cache_dir: keep the features in this folder, for other runs too; in memory if None.
        skip_bad_files: leave files out that cannot be used.

    Raises:
        DataError: the data cannot be split; the message says why.
        BadAudioError: some files cannot be used, and none may be skipped.
    """
    splits = choose_splits(table, fold, test_fraction, seed)
    limits = {"min_seconds": min_seconds, "max_seconds": max_seconds}
    features, skipped = compute_features(splits.clips, feature_extractor, limits, cache_dir, skip_bad_files)
    splits = splits.without(skipped)

    def dataset(clips: list[Clip]) -> FeatureDataset:
        return FeatureDataset(clips, features, splits.labels, table.multi_label)

    train, test, description = dataset(splits.train), dataset(splits.test), describe_splits(splits, fold)
    evaluation = dataset(splits.validation) if splits.validation else test
    return TrainingData(train, evaluation, test, splits.labels, table.multi_label, description, len(skipped))


def compute_features(
    clips: list[Clip],
    feature_extractor: Any,
    limits: dict[str, Any],
    cache_dir: Union[str, Path, None],
    skip_bad_files: bool,
) -> tuple[Mapping[str, Mapping[str, Any]], dict[str, str]]:
    """Compute the features of clips.

    Args:
        clips: the clips.
        feature_extractor: of the model.
        limits: min_seconds and max_seconds, see `prepare_clips`, and there for the other arguments.
        cache_dir: where to keep them.
        skip_bad_files: whether to leave out what cannot be used.

    Returns:
        The features by clip name, and the reasons by name of the files left out.

    Raises:
        BadAudioError: some files cannot be used, and none may be skipped.
    """
    if cache_dir is None:
        return extract_features(clips, feature_extractor, **limits, skip_bad_files=skip_bad_files)
    features = FeatureCache(cache_dir, feature_extractor, **limits).compute(clips, skip_bad_files)
    return features, features.skipped


def describe_splits(splits: Splits, fold: Optional[str]) -> str:
    """Return how clips were split, and how many train and test.

    Args:
        splits: the clips.
        fold: that tests; None if none was given.
    """
    if fold is not None:
        how = f"fold {fold} tests, all others train"
    else:
        how = "its own split" if any(clip.split for clip in splits.test) else "a random split"
    return f"{how}: {len(splits.train)} clips to train on, {len(splits.test)} to test on"


def prepare_stream(
    name: str,
    feature_extractor: Any,
    *,
    config_name: Optional[str] = None,
    shuffle_buffer: int = 1000,
    **clip_options: Any,
) -> TrainingData:
    """Train and test on a data set of the Hub while it is being fetched.

    Args:
        name: of the data set.
        feature_extractor: of the model.
        config_name: the configuration of the data set.
        shuffle_buffer: draw each training clip from as many that are kept waiting.
        clip_options: further arguments of `StreamedClips`: audio_column, label_column, max_seconds, seed, ...

    Raises:
        ValueError: as `StreamedClips`.
        DataError: the data set has nothing to train or test on, or lacks a column or its labels.
    """
    rate, clip_options = feature_extractor.sampling_rate, {"config_name": config_name, **clip_options}
    clips = {
        role: StreamedClips(name, split, rate, shuffle_buffer=shuffle_buffer if role == "train" else 0, **clip_options)
        for role, split in stream_splits(name, config_name).items()
    }
    inputs = {role: StreamedInputs(stream, feature_extractor) for role, stream in clips.items()}
    return TrainingData(
        train=inputs["train"],
        evaluation=inputs.get("validation", inputs["test"]),
        test=inputs["test"],
        labels=clips["train"].labels,
        multi_label=clips["train"].multi_label,
        description="its own split, as a stream",
    )
