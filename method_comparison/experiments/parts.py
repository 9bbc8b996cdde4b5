"""What a recipe trains and tests on: a part for each fold of its data set, or one by the data set's own splits."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from data_sets import DATA_SETS

from peft_audio.data import Clip, ClipTable, DataError, Splits, Trial, choose_splits, read_trials, recordings_of

from .recipe import Recipe


TRIALS = "veri_test.txt"


@dataclass(frozen=True)
class Part:
    """One training: the name of its fold or split, its clips, and in verification the trials that test it."""

    name: str
    splits: Splits
    trials: tuple[Trial, ...] = ()


def parts_of(recipe: Recipe, data_dir: Path, seed: int = 0, folds: list[str] | None = None) -> list[Part]:
    """The parts of a recipe; of those that are folds, the ones in `folds`, or all.

    Args:
        recipe: the recipe.
        data_dir: folder of its data set.
        seed: draws the clips of a few-shot recipe.
        folds: names of folds.

    Raises:
        DataError: the folder cannot be read, has no such fold, or neither folds nor splits.
    """
    table = DATA_SETS[recipe.data_set].read(data_dir, **recipe.data_options)
    if recipe.code_size is not None:
        trials = tuple(read_trials(data_dir, recipe.data_options.get("trials", TRIALS)))
        train = [clip for clip in table.clips if clip.split == "train"]
        return [Part("trials", Splits(few(recipe, train, seed), recordings_of(trials)), trials)]
    return [
        Part(part.name, dataclasses.replace(part.splits, train=few(recipe, part.splits.train, seed)))
        for part in by_fold_or_split(table, folds)
    ]


def by_fold_or_split(table: ClipTable, folds: list[str] | None) -> list[Part]:
    names = sorted({clip.fold for clip in table.clips} - {None}, key=lambda name: (len(name), name))
    unknown = sorted(set(folds or []) - set(names))
    if unknown:
        raise DataError(
            f"{table.origin}: there is no fold {', '.join(unknown)}; the folds: {', '.join(names) or 'none'}."
        )
    if names:
        return [Part(f"fold-{name}", choose_splits(table, fold=name)) for name in folds or names]
    if all(clip.split is None for clip in table.clips):
        raise DataError(f"{table.origin}: has neither folds nor splits, so nothing says what tests.")
    return [Part("split", choose_splits(table))]


def few(recipe: Recipe, clips: list[Clip], seed: int) -> list[Clip]:
    """Of every class as many clips as the recipe trains on, drawn by the seed; all of them unless it says so."""
    if recipe.few_shot is None:
        return clips
    by_label: dict[tuple[str, ...], list[Clip]] = {}
    for clip in clips:
        by_label.setdefault(clip.labels, []).append(clip)
    short = [", ".join(label) for label, group in sorted(by_label.items()) if len(group) < recipe.few_shot]
    if short:
        raise DataError(
            f"{recipe.name}: 'few_shot' is {recipe.few_shot}, but there are fewer training clips of {'; '.join(short)}. "
            "Take fewer, or leave these classes out."
        )
    rng = np.random.default_rng(seed)
    drawn = []
    for group in by_label.values():
        drawn += [group[index] for index in sorted(rng.choice(len(group), recipe.few_shot, replace=False))]
    return drawn
