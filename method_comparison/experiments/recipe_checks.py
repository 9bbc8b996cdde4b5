"""What is wrong with a recipe, told before its data are read: names, numbers, and what its parts do not take."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from data_sets import DATA_SETS
from training.optimizers import make_optimizer
from training.schedules import epoch_steps
from training.weight_averaging import WeightAveraging

from peft_audio.trainer import make_config

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


def try_data_options(recipe: Recipe) -> None:
    inspect.signature(DATA_SETS[recipe.data_set].read).bind("folder", **recipe.data_options)


def try_schedule(recipe: Recipe) -> None:
    never = {"start": recipe.epochs + 1, "stop": recipe.epochs + 1}
    epoch_steps(optimizer_of(recipe), 1, **never | dict(recipe.schedule))


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


ATTEMPTS: dict[str, Callable[[Recipe], object]] = {
    "method": lambda recipe: make_config(recipe.method),
    "options": lambda recipe: make_config(recipe.method, **recipe.options),
    "data_options": try_data_options,
    "optimizer": optimizer_of,
    "schedule": try_schedule,
    "weight_average": try_weight_average,
    "spec_augment": try_spec_augment,
}
