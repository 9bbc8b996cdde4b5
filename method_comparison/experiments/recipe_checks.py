"""What is wrong with a recipe, told before its data are read: names, numbers, and what its parts do not take."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from data_sets import DATA_SETS
from training.optimizers import make_optimizer
from training.schedules import epoch_steps
from training.weight_averaging import WeightAveraging

from peft_audio.trainer import make_config
from peft_audio.utils.ranges import COUNT, Range

from .backbones import BACKBONES
from .recipe import Recipe, RecipeError


def check_recipe(recipe: Recipe) -> None:
    """Try what needs neither data nor a pretrained model.

    Raises:
        RecipeError: a field is of no use; names the recipe, the field and what is wrong with it.
    """
    for field, known in (("backbone", BACKBONES), ("data_set", DATA_SETS)):
        if getattr(recipe, field) not in known:
            raise RecipeError(
                f"{recipe.name}: {field!r} must be one of {', '.join(known)}, got {getattr(recipe, field)!r}."
            )
    for field, attempt in ATTEMPTS.items():
        with told(recipe, field):
            attempt(recipe)


@contextmanager
def told(recipe: Recipe, field: str) -> Iterator[None]:
    """Raise what goes wrong within as a `RecipeError` about a field."""
    try:
        yield
    except (TypeError, ValueError) as error:
        value, reason = getattr(recipe, field), " ".join(str(error).split())
        raise RecipeError(f"{recipe.name}: {field!r} cannot be {value!r}: {reason}") from None


def try_data_set(recipe: Recipe) -> None:
    data_set, has_trials = DATA_SETS[recipe.data_set], recipe.data_options.get("split") == "verification"
    if data_set.multi_label and (recipe.loss, recipe.metric) != ("binary_cross_entropy", "map"):
        raise ValueError("a clip can have several labels there: loss must be binary_cross_entropy, and metric map.")
    if (recipe.code_size is not None) != has_trials:
        raise ValueError("code_size is for data with trials, data_options {split: verification}, and these need it.")
    if (recipe.metric == "equal_error_rate") != has_trials:
        raise ValueError("metric equal_error_rate is that of data with trials, data_options {split: verification}.")


def try_data_options(recipe: Recipe) -> None:
    DATA_SETS[recipe.data_set].check_options(recipe.data_options)


def try_rule(recipe: Recipe) -> None:
    if recipe.rule == "validation" and DATA_SETS[recipe.data_set].fold_names(recipe.data_options):
        raise ValueError(f"{recipe.data_set} has folds then, and no clips for validation.")


def refuse_for(kind: str, *fields: str) -> dict[str, Callable[[Recipe], None]]:
    """Checks that fields which a kind of model would not look at are as they are by default."""
    default = {field.name: field.default for field in dataclasses.fields(Recipe)}

    def refuse(field: str, recipe: Recipe) -> None:
        found = "waveforms" if BACKBONES[recipe.backbone].reads_waveforms else "spectrograms"
        if found == kind and getattr(recipe, field) != default[field]:
            raise ValueError(f"{recipe.backbone} reads {kind}, where it does nothing.")

    return {field: functools.partial(refuse, field) for field in fields}


def try_schedule(recipe: Recipe) -> None:
    never = {"start": recipe.epochs + 1, "stop": recipe.epochs + 1}
    epoch_steps(optimizer_of(recipe), 1, **never | dict(recipe.schedule))
    Range(0, COUNT.high, whole=True).check("warmup_steps", recipe.schedule.get("warmup_steps", 0))


def optimizer_of(recipe: Recipe) -> torch.optim.Optimizer:
    return make_optimizer(torch.nn.Linear(1, 1), learning_rate=recipe.learning_rate, **recipe.optimizer)


def try_weight_average(recipe: Recipe) -> None:
    if recipe.weight_average is None:
        return
    WeightAveraging(*recipe.weight_average)
    if recipe.weight_average[1] > recipe.epochs:
        raise ValueError(f"the training has {recipe.epochs} epochs.")


def try_spec_augment(recipe: Recipe) -> None:
    if recipe.spec_augment is not None and recipe.frames is not None and recipe.spec_augment[0] > recipe.frames:
        raise ValueError(f"the input has {recipe.frames} frames, a mask may not be longer.")
    bins = getattr(BACKBONES[recipe.backbone].config(recipe), "num_mel_bins", None)
    if recipe.spec_augment is not None and bins is not None and recipe.spec_augment[1] > bins:
        raise ValueError(f"the input has {bins} mel bins, a mask may not be wider.")


ATTEMPTS: dict[str, Callable[[Recipe], object]] = {
    "method": lambda recipe: make_config(recipe.method),
    "options": lambda recipe: make_config(recipe.method, **recipe.options),
    "data_options": try_data_options,
    "data_set": try_data_set,
    "rule": try_rule,
    **refuse_for("waveforms", "stride", "noise"),
    **refuse_for("spectrograms", "weighted_layer_sum"),
    "optimizer": optimizer_of,
    "schedule": try_schedule,
    "weight_average": try_weight_average,
    "spec_augment": try_spec_augment,
}
