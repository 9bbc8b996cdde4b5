"""One row of a paper's table: which model, data, method and training, and what the paper reports for it.

The tables are YAML files in `method_comparison/recipes/`, one a paper; `experiments.tables` says how they are written.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from peft_audio.utils.ranges import COUNT, Range

from .tables import RecipeError, read_tables


RECIPES = Path(__file__).resolve().parents[1] / "recipes"


@dataclass(frozen=True)
class Recipe:
    """The settings of one row. Frames are 10 ms each.

    Args:
        name: the paper's file in `method_comparison/recipes/`, without suffix, and the row's own, e.g. ipet/ast-esc50.
        source: paper and table.
        data_set: a key of `data_sets.DATA_SETS`.
        backbone: a key of `experiments.backbones.BACKBONES`.
        method: a key of `methods.METHODS`.
        epochs: number of epochs.
        batch_size: clips a step.
        learning_rate: at the start of the schedule.
        metric: "accuracy", "map" (mean average precision) or "equal_error_rate".
        reported: what the paper reports, by metric, in shares, not percentages.
        notes: where the paper is silent, and what is done instead.
        options: options of the method, named as on the command line of `train_classification.py`.
        data_options: options of the data set's reader.
        few_shot: train on that many clips a class, drawn by the seed.
        frames: length that clips are cut or filled up to; None: as they are.
        fill: how clips that are too short are filled up: "pad" (zeros behind the waveform, or spectrogram) or "repeat".
        random_crop: training takes a random cut of clips that are too long, else the front.
        test_segments: cuts of a clip, evenly spread, whose scores or speaker embeddings are averaged in testing.
        stride: from one patch of the spectrogram to the next, in frames and mel bins; None: the model's own.
        statistics_pooling: mean and standard deviation over time in front of the head.
        weighted_layer_sum: a trained average of all layers' outputs in front of the head.
        code_size: width of the speaker embedding in front of the head; None: there is none.
        loss: "cross_entropy" or "binary_cross_entropy".
        optimizer: name ("adam" or "adamw") and its settings.
        schedule: of the learning rate: `start`, `stop`, `every` (epochs), `factor`, `warmup_steps`.
        spec_augment: longest masks over time (frames) and frequency (mel bins).
        mixup: share of training clips that are mixed with another.
        noise: noise and shifts on training spectrograms.
        musan: training waveforms with noise, music and babble of the MUSAN corpus.
        weight_average: first and last epoch whose weights are averaged at the end.
        rule: which epoch the paper reports: the best on the "test" clips, the best in "validation", or the "last".
    """

    name: str
    source: str
    data_set: str
    backbone: str
    method: str
    epochs: int
    batch_size: int
    learning_rate: float
    metric: str = "accuracy"
    reported: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    data_options: Mapping[str, Any] = field(default_factory=dict)
    few_shot: int | None = None
    frames: int | None = None
    fill: str = "pad"
    random_crop: bool = False
    test_segments: int = 1
    stride: int | None = None
    statistics_pooling: bool = False
    weighted_layer_sum: bool = False
    code_size: int | None = None
    loss: str = "cross_entropy"
    optimizer: Mapping[str, Any] = field(default_factory=lambda: {"name": "adam"})
    schedule: Mapping[str, Any] = field(default_factory=dict)
    spec_augment: tuple[int, ...] | None = None
    mixup: float = 0.0
    noise: bool = False
    musan: bool = False
    weight_average: tuple[int, ...] | None = None
    rule: str = "test"


CHOICES = {
    "metric": ("accuracy", "map", "equal_error_rate"),
    "loss": ("cross_entropy", "binary_cross_entropy"),
    "fill": ("pad", "repeat"),
    "rule": ("test", "validation", "last"),
}
RANGES = {
    **dict.fromkeys(("epochs", "batch_size"), COUNT),
    "few_shot": dataclasses.replace(COUNT, optional=True),
    "test_segments": Range(1, 1000, whole=True),
    "stride": Range(1, 1000, whole=True, optional=True),
    "code_size": Range(1, 65_536, whole=True, optional=True),
    "frames": Range(1, 100_000, whole=True, optional=True),  # 1,000 s
    "learning_rate": Range(0, above=True),
}
PAIRS = ("spec_augment", "weight_average")
METRICS = ("accuracy", "map", "equal_error_rate", "min_dcf")


def recipe_names(folder: Path = RECIPES) -> list[str]:
    """The names of all recipes, sorted."""
    return sorted(name for path in folder.glob("*.yaml") for name in read_tables(path))


def matching(patterns: list[str], folder: Path = RECIPES) -> list[str]:
    """The recipes with these names, in which * stands for anything. Raises `RecipeError` where there is none."""
    names, found = recipe_names(folder), {}
    for pattern in patterns:
        matches = [name for name in names if Path(name).match(pattern) and name.count("/") == pattern.count("/")]
        if not matches:
            close = difflib.get_close_matches(pattern, names, n=3)
            raise RecipeError(
                f"There is no recipe {pattern!r}. {'Did you mean ' + ', '.join(close) + '?' if close else ''} "
                f"`--list` shows all {len(names)}."
            )
        found |= dict.fromkeys(matches)
    return list(found)


def load_recipe(name: str, changes: Mapping[str, Any] | None = None, folder: Path = RECIPES) -> Recipe:
    """Read the recipe of this name.

    Args:
        name: the paper's file and the row's own name, e.g. ipet/ast-esc50.
        changes: settings that go before those of the file.
        folder: where the papers' files are.

    Raises:
        RecipeError: there is no such recipe, or a field is unknown, missing or of another kind.
    """
    path = folder / f"{name.partition('/')[0]}.yaml"
    rows = read_tables(path)
    if name not in rows:
        raise RecipeError(f"{path}: has no recipe {name!r}. Its recipes are {', '.join(rows)}.")
    settings = rows[name] | dict(changes or {})
    where = f"{path}: {name}"
    _refuse_unknown(where, settings)
    if isinstance(settings.get("reported"), float):  # alone: of the recipe's metric
        settings["reported"] = {settings.get("metric", Recipe.metric): settings["reported"]}
    hints = typing.get_type_hints(Recipe)
    return _made(where, name, {key: _converted(where, key, value, hints[key]) for key, value in settings.items()})


def _refuse_unknown(where: str, settings: Mapping[str, Any]) -> None:
    known = [entry.name for entry in fields(Recipe) if entry.name != "name"]
    for key in settings:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"The fields are {', '.join(known)}."
            raise RecipeError(f"{where}: {key!r} is no field of a recipe. {hint}")


def _made(where: str, name: str, values: Mapping[str, Any]) -> Recipe:
    try:
        recipe = Recipe(name=name, **values)
    except TypeError as error:  # its message names the fields that are missing
        missing = str(error).partition(") ")[2] or error
        raise RecipeError(f"{where}: {missing}. Add them to its row, its table or the file.") from None
    _check(where, recipe)
    return recipe


def _converted(where: str, name: str, value: Any, hint: Any) -> Any:
    """The value as the field wants it: whole numbers may stand for fractions, lists for tuples."""
    accepted = list(_plain_types(hint))
    if isinstance(value, str) and float in accepted:
        with suppress(ValueError):
            return float(value)  # 1e-3: YAML wants 1.0e-3
    if isinstance(value, list) and tuple in accepted:
        return tuple(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in accepted and int not in accepted:
        return float(value)
    is_wanted = type(value) in accepted or (isinstance(value, Mapping) and Mapping in accepted)
    if not is_wanted:
        wanted = " or ".join("null" if kind is types.NoneType else kind.__name__ for kind in accepted)
        raise RecipeError(f"{where}: {name!r} must be {wanted}, got {value!r}.")
    return value


def _plain_types(hint: Any) -> Iterator[type]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _plain_types(part)
    else:
        yield typing.get_origin(hint) or hint


def _check(where: str, recipe: Recipe) -> None:
    for name, choices in CHOICES.items():
        if getattr(recipe, name) not in choices:
            raise RecipeError(f"{where}: {name!r} must be one of {', '.join(choices)}, got {getattr(recipe, name)!r}.")
    for name, wanted in RANGES.items():
        if getattr(recipe, name) not in wanted:
            raise RecipeError(f"{where}: {name!r} must be {wanted}, got {getattr(recipe, name)!r}.")
    for name in PAIRS:
        value = getattr(recipe, name)
        if value is not None and (len(value) != 2 or not all(type(number) is int and number >= 0 for number in value)):
            raise RecipeError(f"{where}: {name!r} must be two numbers from 0 up, got {list(value)!r}.")
    _check_shown(where, recipe)
    if not 0 <= recipe.mixup <= 1:
        raise RecipeError(f"{where}: 'mixup' must lie between 0 and 1, got {recipe.mixup!r}.")


def _check_shown(where: str, recipe: Recipe) -> None:
    for name, value in recipe.reported.items():
        if name not in METRICS or value not in Range(0, 1):
            wanted = f"numbers from 0 to 1 of {', '.join(METRICS)}"
            raise RecipeError(f"{where}: 'reported' must be {wanted}, got {name!r}: {value!r}.")
    if not all(isinstance(note, str) for note in recipe.notes):
        raise RecipeError(f"{where}: 'notes' must be texts, got {list(recipe.notes)!r}.")
