"""Training, validation and test clips: by fold, by split, or drawn at random."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Optional

import numpy as np
from sklearn.model_selection import train_test_split

from .clips import SPLIT_WORDS, Clip, ClipTable, DataError, fold_name, quoted


logger = logging.getLogger(__name__)


@dataclass
class Splits:
    """The clips by what they are for.

    Args:
        train: to train on.
        test: for the final result.
        validation: to evaluate on during training; may be empty.
    """

    train: list[Clip]
    test: list[Clip]
    validation: list[Clip] = field(default_factory=list)

    @property
    def clips(self) -> list[Clip]:
        """All clips."""
        return self.train + self.validation + self.test

    @property
    def labels(self) -> list[str]:
        """The labels of the training clips, sorted."""
        return sorted({label for clip in self.train for label in clip.labels})

    def without(self, names: Iterable[str]) -> Splits:
        """Return the same splits without the clips of these names.

        Raises:
            DataError: a classifier cannot be trained and tested on the rest.
        """
        names = set(names)
        kept = {split: [clip for clip in clips if clip.name not in names] for split, clips in vars(self).items()}
        return Splits(**kept).checked("the usable clips")

    def checked(self, origin: str) -> Splits:
        """Return these splits if a classifier, or a recognizer on transcribed clips, can be trained and tested on them.

        Args:
            origin: what the error message calls the data.

        Raises:
            DataError: there is nothing to train or test on, a label has no training clip, or there is one label only; for
                labels of frames one is enough, but clips of every kind must have an event.
        """
        for name, clips in (("training", self.train), ("test", self.test)):
            if not clips:
                raise DataError(
                    f"{origin}: there are no {name} clips ({len(self.train)} to train on, {len(self.test)} to test)."
                )
        if all(clip.text is not None for clip in self.clips):
            return self
        for name in ("test", "validation"):
            unseen = {label for clip in getattr(self, name) for label in clip.labels} - set(self.labels)
            if unseen:
                raise DataError(
                    f"{origin}: label {quoted(unseen)} appears in the {name} clips but in no training clip, so it "
                    f"cannot be learned. Add training clips with it, or remove its {name} clips."
                )
        if any(clip.events is not None for clip in self.clips):
            return self._checked_events(origin)
        if len(self.labels) < 2:
            raise DataError(
                f"{origin}: a classifier needs two labels or more, the training clips have {quoted(self.labels)}."
            )
        return self

    def _checked_events(self, origin: str) -> Splits:
        for name, clips in (("training", self.train), ("test", self.test), ("validation", self.validation)):
            if clips and not any(clip.events for clip in clips):
                raise DataError(f"{origin}: no {name} clip has an event. Add some, or split the clips in another way.")
        return self


def choose_splits(table: ClipTable, fold: Optional[str] = None, test_fraction: float = 0.2, seed: int = 0) -> Splits:
    """Choose training and test clips: by fold if one is given, by split if the data set has them, else at random.

    Args:
        table: the clips.
        fold: this fold tests, all others train. None: the data set's own splits, if it has any; its validation
            split tests where there is no test split.
        test_fraction: share of the clips that test in a random split, the same for every class.
        seed: of the random split.

    Raises:
        DataError: the fold does not exist, a label has no training clip, a split is empty or has an unknown name, ...
    """
    if fold is not None:
        return _split_by_fold(table, fold).checked(f"{table.origin}, fold {fold}")
    splits = _given_splits(table)
    if splits is not None:
        return splits.checked(table.origin)
    if any(clip.fold is not None for clip in table.clips):
        logger.warning(
            "%s has folds, which usually keep related recordings together. A random split ignores them and tends to "
            "give results that are too good. Set fold=N to test on fold N.",
            table.origin,
        )
    if not 0 < test_fraction < 1:
        raise DataError(f"test_fraction must lie between 0 and 1, got {test_fraction}.")
    draw = _draw_multi_label if table.multi_label else _draw_stratified
    draw = _draw_transcribed if table.has_texts else draw
    return draw(table, test_fraction, seed).checked(table.origin)


def _given_splits(table: ClipTable) -> Optional[Splits]:
    """Return the data set's own splits, None where it has none."""
    parts: dict[str, list[Clip]] = {name: [] for name in ("train", "test", "validation")}
    for clip in table.clips:
        if clip.split is not None and clip.split.lower() not in SPLIT_WORDS:
            raise DataError(
                f"{table.origin}: the split of {clip.name!r} is {clip.split!r}, it must be one of "
                f"{', '.join(SPLIT_WORDS)}."
            )
        parts[SPLIT_WORDS[clip.split.lower()] if clip.split else "train"].append(clip)
    if not parts["test"]:
        parts["test"], parts["validation"] = parts["validation"], []
    return Splits(**parts) if parts["test"] else None


def _split_by_fold(table: ClipTable, fold: str) -> Splits:
    wanted, folds = fold_name(fold), sorted({clip.fold for clip in table.clips if clip.fold is not None})
    if not folds:
        raise DataError(
            f"{table.origin}: fold {fold} needs a column 'fold', and there is none. Add it to metadata.csv, or "
            "give no fold to split by the column 'split' or at random."
        )
    if wanted not in folds:
        raise DataError(f"{table.origin}: fold {fold} does not exist, the folds are {', '.join(folds)}.")
    return Splits(
        train=[clip for clip in table.clips if clip.fold != wanted],
        test=[clip for clip in table.clips if clip.fold == wanted],
    )


def _draw_stratified(table: ClipTable, test_fraction: float, seed: int) -> Splits:
    labels = [clip.labels[0] for clip in table.clips]
    single = [label for label, count in Counter(labels).items() if count < 2]
    if single:
        raise DataError(
            f"{table.origin}: label {quoted(single)} has a single clip, which cannot both train and test. Add clips, "
            "or say what tests in a column 'fold' or 'split'."
        )
    classes = len(set(labels))
    size = min(max(round(test_fraction * len(labels)), classes), len(labels) - classes)
    return Splits(*train_test_split(table.clips, test_size=size, random_state=seed, stratify=labels))


def _draw_transcribed(table: ClipTable, test_fraction: float, seed: int) -> Splits:
    if len(table.clips) < 2:
        raise DataError(f"{table.origin}: a single clip cannot both train and test. Add clips.")
    size = min(max(round(test_fraction * len(table.clips)), 1), len(table.clips) - 1)
    return Splits(*train_test_split(table.clips, test_size=size, random_state=seed))


def _draw_multi_label(table: ClipTable, test_fraction: float, seed: int) -> Splits:
    left = Counter(label for clip in table.clips for label in clip.labels)
    size = round(test_fraction * len(table.clips))
    test: set[int] = set()
    for index in np.random.default_rng(seed).permutation(len(table.clips)).tolist():
        # A clip may test only while each of its labels keeps a clip to learn from.
        if len(test) < size and all(left[label] > 1 for label in table.clips[index].labels):
            test.add(index)
            left.subtract(table.clips[index].labels)
    train = [clip for index, clip in enumerate(table.clips) if index not in test]
    return Splits(train, [table.clips[index] for index in sorted(test)])
