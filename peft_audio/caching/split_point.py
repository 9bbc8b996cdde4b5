"""Where the frozen part of a model ends: at the split point, the first module of a forward pass that anything trains in."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Optional

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..backbones.spec import Backbone
from ..backbones.table import resolve
from ..heads.weighted_layer_sum import MODULE_NAME
from ..upstream.hooks import AFTER_FORWARD, owners_of_hooks
from ..upstream.peft_modules import is_adapted
from .calls import ModuleCall


@dataclass(frozen=True)
class SplitPoint:
    """The first module of a forward pass that anything trains in, and the calls before it.

    Attributes:
        path: the module's path from the model.
        number: number of its call among all calls of a forward pass.
        replaced: numbers and paths of the calls that need not run: outermost ones that end before this one begins.
        after: paths of the modules that run only from here on.
        taken: numbers of calls whose outputs are what is kept, instead of what enters the module (side_split.py).
        beside: paths of the modules that read them.
        num_tokens: number of tokens, the first ones, that those modules read; None for all.
    """

    path: str
    number: int
    replaced: dict[int, str]
    after: frozenset[str]
    taken: tuple[int, ...] = ()
    beside: frozenset[str] = frozenset()
    num_tokens: Optional[int] = None


def find_split_point(model: nn.Module, calls: list[ModuleCall]) -> SplitPoint:
    """Return the split point of a model that made these calls.

    Raises:
        ValueError: nothing trains, or something that trains takes part before the encoder layers or outside of the
            modules that run after the split point.
    """
    backbone = resolve(model)
    check_layer_weights(model, backbone)
    number = _first_trained(model, backbone, calls)
    path, start = calls[number].path, calls[number].start
    ended = {index for index, call in enumerate(calls) if call.end < start}
    around = {index for index, call in enumerate(calls) if call.start < start < call.end}
    outermost = [index for index in sorted(ended) if calls[index].parent in around]
    replaced = {index: calls[index].path for index in without_listeners(model, calls, outermost)}
    before = {calls[index].path for index in ended | around}
    after = frozenset({call.path for call in calls[number:]} - before)
    check_frozen(model, path, after)
    return SplitPoint(path, number, replaced, after)


def frozen_modules(model: nn.Module, after: Collection[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the paths and modules that do not run only from the split point on.

    Args:
        model: the model.
        after: as in `SplitPoint`.
    """
    inside = None  # start of the paths inside of the last module that was left out: they come right after it
    for path, module in model.named_modules(remove_duplicate=False):
        if inside is not None and path.startswith(inside):
            continue
        if path in after:
            inside = f"{path}."
        else:
            yield path, module


def _lies_in(path: str, place: str) -> bool:
    return not place or path == place or path.startswith(place + ".")


def check_layer_weights(model: nn.Module, backbone: Backbone) -> None:
    """Raise ValueError if weights of hidden states train."""
    parameter = getattr(model, backbone.spec.layer_weights or "", None)
    if hasattr(model, MODULE_NAME) or getattr(parameter, "requires_grad", False):
        raise ValueError(
            f"The weights of `use_weighted_layer_sum` train, {backbone.spec.layer_weights!r}, and they need the hidden "
            "states of all encoder layers, but only those at one place are kept. Freeze them (`modules_to_save` without "
            "them), load the model with use_weighted_layer_sum=False, or train from the input."
        )


def check_frozen(model: nn.Module, path: str, after: Collection[str]) -> None:
    """Raise ValueError if something trains outside of the modules `after`."""
    trained = [
        f"{place}.{name}".lstrip(".")
        for place, module in frozen_modules(model, after)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    if trained:
        raise ValueError(
            f"{', '.join(trained[:5])} of {type(model).__name__} trains, but belongs to no module that runs after "
            f"{path!r} has started, the first one that trains: what comes before would change. Freeze it, e.g. with "
            "requires_grad_(False), or train from the input."
        )


def _first_trained(model: nn.Module, backbone: Backbone, calls: list[ModuleCall]) -> int:
    """Return the number of the first call of a module that trains. An encoder layer counts as a whole."""
    modules = dict(model.named_modules())
    whole = {*backbone.layer_names, *backbone.head}
    around = {path for path in modules for layer in backbone.layer_names if path != layer and _lies_in(layer, path)}
    layer_has_started = False
    for number, call in enumerate(calls):
        layer_has_started |= call.path in backbone.layer_names
        # The model and its encoder run first. Their own parameters are checked once the split point is known.
        if call.path in around or not _trains(modules[call.path], call.path in whole):
            continue
        if layer_has_started:
            return number
        raise ValueError(
            f"{call.path!r} of {type(model).__name__} trains and takes part before the first encoder layer, so "
            "there is no frozen part whose result could be kept. Freeze it, or train from the input."
        )
    raise ValueError(
        f"Nothing trains in the modules of {type(model).__name__} that a forward pass runs, so the frozen part has no "
        "end. Unfreeze the head or put an adapter on first."
    )


def _trains(module: nn.Module, as_a_whole: bool) -> bool:
    parts = module.modules() if as_a_whole else (module,)
    return any(
        is_adapted(part) or any(parameter.requires_grad for parameter in part.parameters(recurse=False))
        for part in parts
    )


def without_listeners(model: nn.Module, calls: list[ModuleCall], numbers: list[int]) -> Iterator[int]:
    """Yield the numbers of calls that can be replaced.

    A tuner layer may have a hook on a module elsewhere, from which it learns the grid of the patches. A call with such a
    module inside cannot be replaced, so those of the calls within it are yielded that can.
    """
    owners = {path: list(owners_of_hooks(module, AFTER_FORWARD)) for path, module in model.named_modules()}
    places: dict[Any, str] = {
        module: path for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    }
    pending = list(numbers)
    while pending:
        number = pending.pop(0)
        place = calls[number].path
        listeners = {
            owner
            for path in owners
            if path != place and _lies_in(path, place)
            for owner in owners[path]
            if isinstance(owner, nn.Module) and owner in places
        }
        if any(not _lies_in(places[listener], place) for listener in listeners):
            pending.extend(inner for inner, call in enumerate(calls) if call.parent == number)
        else:
            yield number
