"""One row of a paper's table: which model, data, method and training, and what the paper reports for it.

A recipe is a YAML file below `method_comparison/recipes/`. `extends` names the files, relative to that folder, whose settings it
starts from; what it says itself goes first. Files in folders called `shared` are no recipes, but parts of some.
"""

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml


RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SHARED = "shared"


class RecipeError(ValueError):
    """A recipe cannot be used; the message names the file, the field, the rule and the way out."""


@dataclass(frozen=True)
class Recipe:
    """The settings of one row. Frames are 10 ms each.

    Args:
        name: path below `method_comparison/recipes/`, without suffix.
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
        test_segments: cuts of a clip, evenly spread, whose scores (codes, in verification) are averaged in testing.
        stride: from one patch of the spectrogram to the next, in frames and mel bins; None: the model's own.
        statistics_pooling: mean and standard deviation over time in front of the head.
        weighted_layer_sum: a trained average of all layers' outputs in front of the head.
        code_size: width of the speaker codes in front of the head; None: no codes.
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
POSITIVE = ("epochs", "batch_size", "learning_rate", "few_shot", "frames", "stride", "code_size", "test_segments")
PAIRS = ("spec_augment", "weight_average")


def recipe_names(folder: Path = RECIPES) -> list[str]:
    """The names of all recipes, sorted."""
    paths = sorted(path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
    return [path.as_posix() for path in paths if SHARED not in path.parts]


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
        name: path below `folder`, without suffix.
        changes: settings that go before those of the file.
        folder: where the recipes are.

    Raises:
        RecipeError: there is no such file, it extends itself, or a field is unknown, missing or of another kind.
    """
    settings = merged(name, folder) | dict(changes or {})
    path = folder / f"{name}.yaml"
    known = [entry.name for entry in fields(Recipe) if entry.name != "name"]
    for key in settings:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"The fields are {', '.join(known)}."
            raise RecipeError(f"{path}: {key!r} is no field of a recipe. {hint}")
    hints = typing.get_type_hints(Recipe)
    values = {key: _converted(path, key, value, hints[key]) for key, value in settings.items()}
    try:
        recipe = Recipe(name=name, **values)
    except TypeError as error:  # its message names the fields that are missing
        raise RecipeError(
            f"{path}: {str(error).partition(') ')[2] or error}. Add them, or extend a file with them."
        ) from None
    _check(path, recipe)
    return recipe


def merged(name: str, folder: Path = RECIPES, parents: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings in the file of this name, and those of the files that it extends, the later ones first."""
    path = folder / f"{name}.yaml"
    if name in parents:
        raise RecipeError(f"{path}: extends itself, through {' -> '.join((*parents, name))}.")
    own = _read(path)
    extended = own.pop("extends", [])
    settings: dict[str, Any] = {}
    for parent in [extended] if isinstance(extended, str) else extended:
        settings |= merged(parent, folder, (*parents, name))
    notes = settings.get("notes", []) + own.pop("notes", [])  # of every file: each tells of its own settings
    return settings | own | ({"notes": notes} if notes else {})


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}).") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: no YAML ({error}).") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: must hold fields and values, got {type(content).__name__}.")
    return content


def _converted(path: Path, name: str, value: Any, hint: Any) -> Any:
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
        raise RecipeError(f"{path}: {name!r} must be {wanted}, got {value!r}.")
    return value


def _plain_types(hint: Any) -> Iterator[type]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _plain_types(part)
    else:
        yield typing.get_origin(hint) or hint


def _check(path: Path, recipe: Recipe) -> None:
    for name, choices in CHOICES.items():
        if getattr(recipe, name) not in choices:
            raise RecipeError(f"{path}: {name!r} must be one of {', '.join(choices)}, got {getattr(recipe, name)!r}.")
    for name in POSITIVE:
        value = getattr(recipe, name)
        if value is not None and value <= 0:
            raise RecipeError(f"{path}: {name!r} must be above 0, got {value!r}.")
    for name in PAIRS:
        value = getattr(recipe, name)
        if value is not None and (len(value) != 2 or not all(type(number) is int and number >= 0 for number in value)):
            raise RecipeError(f"{path}: {name!r} must be two numbers from 0 up, got {list(value)!r}.")
    if not 0 <= recipe.mixup <= 1:
        raise RecipeError(f"{path}: 'mixup' must lie between 0 and 1, got {recipe.mixup!r}.")
