"""What the training script trains and tests on: clips whose features are computed first, or a stream of a Hub data set."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from audio_data import FeatureDataset, extract_features, model_inputs
from clip_table import SPLIT_WORDS, DataError, Splits, choose_splits, read_audiofolder, read_hub_dataset
from data_sets.streaming import StreamedClips
from feature_cache import FeatureCache


@dataclass(frozen=True)
class TrainingData:
    """Data sets whose items are what the model takes.

    Args:
        train: to train on.
        evaluation: looked at during training; the test clips where nothing else is.
        test: for the result.
        labels: label names by index.
        multi_label: whether a clip can have several labels.
        description: for the model card.
        skipped: number of files that were left out.
    """

    train: torch.utils.data.Dataset
    evaluation: torch.utils.data.Dataset
    test: torch.utils.data.Dataset
    labels: list[str]
    multi_label: bool
    description: str
    skipped: int = 0


def prepare_data(arguments, feature_extractor, min_seconds: float, seed: int) -> TrainingData:
    """The data that `train_classification.DataArguments` names.

    Raises:
        DataError: it cannot be used; the message says why.
        BadAudioError: some files cannot be used, and none may be skipped.
    """
    prepare = prepare_stream if arguments.streaming else prepare_clips
    return prepare(arguments, feature_extractor, min_seconds, seed)


# ---- clips -----------------------------------------------------------------------------------------------------------


def prepare_clips(arguments, feature_extractor, min_seconds: float, seed: int) -> TrainingData:
    table = read_table(arguments)
    splits = choose_splits(table, arguments.fold, arguments.test_fraction, seed)
    features, skipped = compute_features(splits.clips, feature_extractor, min_seconds, arguments)
    splits = splits.without(skipped)
    dataset = functools.partial(FeatureDataset, features=features, labels=splits.labels, multi_label=table.multi_label)
    return TrainingData(
        train=dataset(splits.train),
        evaluation=dataset(splits.validation or splits.test),
        test=dataset(splits.test),
        labels=splits.labels,
        multi_label=table.multi_label,
        description=describe_clips(arguments, splits),
        skipped=len(skipped),
    )


def read_table(arguments):
    if arguments.data_dir is not None:
        return read_audiofolder(arguments.data_dir)
    return read_hub_dataset(
        arguments.dataset_name,
        arguments.dataset_config_name,
        arguments.audio_column_name,
        arguments.label_column_name,
    )


def compute_features(clips, feature_extractor, min_seconds: float, arguments):
    """The features by clip name, in memory or in the folder `--cache_dir`, and the reasons by name of files left out."""
    if arguments.cache_dir is None:
        return extract_features(clips, feature_extractor, min_seconds, arguments.max_seconds, arguments.skip_bad_files)
    limits = {"min_seconds": min_seconds, "max_seconds": arguments.max_seconds}
    features = FeatureCache(arguments.cache_dir, feature_extractor, **limits).compute(clips, arguments.skip_bad_files)
    return features, features.skipped


def describe_clips(arguments, splits: Splits) -> str:
    name = arguments.dataset_name or Path(arguments.data_dir).name
    if arguments.fold is not None:
        how = f"fold {arguments.fold} tests, all others train"
    else:
        how = "its own split" if any(clip.split for clip in splits.test) else "a random split"
    return f"Data: {name}, {how}: {len(splits.train)} clips to train on, {len(splits.test)} to test on."


# ---- streams ---------------------------------------------------------------------------------------------------------


class StreamedInputs(torch.utils.data.IterableDataset):
    """The clips of a stream as the model's inputs, `max_seconds` long at most."""

    def __init__(self, clips: StreamedClips, feature_extractor, max_seconds: float | None = None) -> None:
        self.clips, self.feature_extractor = clips, feature_extractor
        self.num_samples = None if max_seconds is None else round(max_seconds * feature_extractor.sampling_rate)

    def set_epoch(self, epoch: int) -> None:
        """Another order for another epoch; the Trainer calls it."""
        self.clips.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict]:
        for clip in self.clips:
            inputs = model_inputs(clip["waveform"][: self.num_samples], self.feature_extractor)
            yield {**inputs, "labels": clip["labels"]}


def prepare_stream(arguments, feature_extractor, min_seconds: float, seed: int) -> TrainingData:
    name, config_name = arguments.dataset_name, arguments.dataset_config_name
    splits = stream_splits(name, config_name)
    options = {
        "audio_column": arguments.audio_column_name,
        "label_column": arguments.label_column_name,
        "min_seconds": min_seconds,
        "skip_bad_files": arguments.skip_bad_files,
        "seed": seed,
    }
    options |= {} if config_name is None else {"name": config_name}
    clips = {
        role: StreamedClips(
            name,
            split,
            feature_extractor.sampling_rate,
            shuffle_buffer=arguments.shuffle_buffer if role == "train" else 0,
            **options,
        )
        for role, split in splits.items()
    }
    inputs = {role: StreamedInputs(stream, feature_extractor, arguments.max_seconds) for role, stream in clips.items()}
    return TrainingData(
        train=inputs["train"],
        evaluation=inputs.get("validation", inputs["test"]),
        test=inputs["test"],
        labels=clips["train"].labels,
        multi_label=clips["train"].multi_label,
        description=f"Data: {name}, its own split, as a stream.",
    )


def stream_splits(name: str, config_name: str | None) -> dict[str, str]:
    """By role (train, validation, test), the name of the split that has it. Validation tests where nothing else does.

    Raises:
        DataError: there is nothing to train or test on.
    """
    found = datasets.get_dataset_split_names(name, config_name)
    roles = {SPLIT_WORDS[split.lower()]: split for split in found if split.lower() in SPLIT_WORDS}
    if "test" not in roles and "validation" in roles:
        roles["test"] = roles.pop("validation")
    if not {"train", "test"} <= roles.keys():
        raise DataError(
            f"{name}: a stream needs a split to train on and one to test on, the splits are {', '.join(found)}. Leave "
            "--streaming out to draw the test clips at random."
        )
    return roles
