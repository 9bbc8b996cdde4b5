"""Where the frozen part of a model ends: the cut, the first module of a forward pass that anything trains in."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Optional

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..backbones.spec import Backbone
from ..backbones.table import resolve
from ..heads.weighted_layer_sum import MODULE_NAME


@dataclass
class Frame:
    """One call of a module during a forward pass: the index of the call around it, and the times of start and end."""

    path: str
    parent: Optional[int]
    start: int
    end: int = -1
    argument: Optional[torch.Tensor] = field(default=None, repr=False)
    output: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Cut:
    """A cut, and the calls before it.

    Attributes:
        path: the module's path from the model.
        frame: number of the call among all of a forward pass.
        replaced: numbers and paths of the calls that need not run: outermost ones that end before the cut starts.
        after: paths of the modules that run from the cut on only.
    """

    path: str
    frame: int
    replaced: dict[int, str]
    after: frozenset[str]


def trace(model: nn.Module, inputs: dict[str, Any], arguments_of: int = -1, keep: Collection[int] = ()) -> list[Frame]:
    """Run the model and return the calls of its modules in the order of their start.

    Args:
        model: in evaluation mode, where every pass makes the same calls.
        inputs: its arguments.
        arguments_of: number of the call whose first tensor argument is to be kept.
        keep: numbers of the calls whose outputs are.
    """
    frames: list[Frame] = []
    running: list[int] = []
    clock = count()
    paths = {module: path for path, module in model.named_modules()}

    def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        frames.append(Frame(paths[module], running[-1] if running else None, next(clock)))
        running.append(len(frames) - 1)
        if running[-1] == arguments_of:
            frames[-1].argument = first_argument(args, kwargs)

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        frame = frames[running[-1]]
        frame.end = next(clock)
        if running.pop() in keep:
            frame.output = output

    handles = []
    try:
        for module in paths:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            # Before the hooks of others: a stand-in gives what the module itself returned.
            handles.append(module.register_forward_hook(leave, prepend=True))
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return frames


def first_argument(args: tuple, kwargs: dict[str, Any]) -> Optional[torch.Tensor]:
    """Return the first tensor among the arguments of a call."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)


def with_first_argument(args: tuple, kwargs: dict[str, Any], tensor: torch.Tensor) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments with another first tensor."""
    for index, value in enumerate(args):
        if isinstance(value, torch.Tensor):
            return (*args[:index], tensor, *args[index + 1 :]), kwargs
    name = next(name for name, value in kwargs.items() if isinstance(value, torch.Tensor))
    return args, {**kwargs, name: tensor}


def find_cut(model: nn.Module, frames: list[Frame]) -> Cut:
    """Return the cut of a model that made these calls.

    Raises:
        ValueError: if nothing trains, or something that trains takes part before the encoder layers or outside of the
            modules that run after the cut.
    """
    backbone = resolve(model)
    _refuse_trained_layer_weights(model, backbone)
    path, frame = _first_trained(model, backbone, frames)
    start = frames[frame].start
    ended = {index for index, other in enumerate(frames) if other.end < start}
    around = {index for index, other in enumerate(frames) if other.start < start < other.end}
    outermost = [index for index in sorted(ended) if frames[index].parent in around]
    replaced = {index: frames[index].path for index in _without_listeners(model, frames, outermost)}
    before = {frames[index].path for index in ended | around}
    after = frozenset({other.path for other in frames[frame:]} - before)
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
    return Cut(path, frame, replaced, after)


def frozen_modules(model: nn.Module, after: Collection[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules and their paths that do not run from the cut on only."""
    pending = [("", model)]
    while pending:
        path, module = pending.pop()
        yield path, module
        for name, child in module._modules.items():
            place = f"{path}.{name}" if path else name
            if child is not None and place not in after:
                pending.append((place, child))


def is_adapted(module: nn.Module) -> bool:
    """Whether the module is a tuner layer with an active adapter, or what PEFT puts around a head."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        return True
    if not isinstance(module, BaseTunerLayer) or module.disable_adapters:
        return False
    return not set(module._all_available_adapter_names()).isdisjoint(module.active_adapters)


def _refuse_trained_layer_weights(model: nn.Module, backbone: Backbone) -> None:
    parameter = getattr(model, backbone.spec.layer_weights or "", None)
    if hasattr(model, MODULE_NAME) or getattr(parameter, "requires_grad", False):
        raise ValueError(
            f"The weights of `use_weighted_layer_sum` train, {backbone.spec.layer_weights!r}, and they need the hidden "
            "states of all encoder layers, but only those at one place are kept. Freeze them (`modules_to_save` without "
            "them), load the model with use_weighted_layer_sum=False, or train from the input."
        )


def _first_trained(model: nn.Module, backbone: Backbone, frames: list[Frame]) -> tuple[str, int]:
    """Return the path of the cut, and the number of its call."""
    modules = dict(model.named_modules())
    whole = {*backbone.layer_names, *backbone.head}
    around = {path for path in modules for layer in backbone.layer_names if path != layer and _lies_in(layer, path)}
    layer_has_started = False
    for index, frame in enumerate(frames):
        layer_has_started |= frame.path in backbone.layer_names
        # The model and its encoder run first: their own parameters are looked at when the cut is known.
        if frame.path in around or not _trains(modules[frame.path], frame.path in whole):
            continue
        if layer_has_started:
            return frame.path, index
        raise ValueError(
            f"{frame.path!r} of {type(model).__name__} trains and takes part before the first encoder layer, so "
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


def _lies_in(path: str, place: str) -> bool:
    return not place or path == place or path.startswith(place + ".")


def _without_listeners(model: nn.Module, frames: list[Frame], calls: list[int]) -> Iterator[int]:
    """Yield the calls, or instead of one the calls within, where a tuner layer elsewhere has a hook inside."""
    owners = {
        path: [getattr(hook, "__self__", None) for hook in module._forward_hooks.values()]
        for path, module in model.named_modules()
        if module._forward_hooks
    }
    places = {module: path for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    pending = list(calls)
    while pending:
        index = pending.pop(0)
        inside = [path for path in owners if path != frames[index].path and _lies_in(path, frames[index].path)]
        heard = any(
            owner in places and not _lies_in(places[owner], frames[index].path)
            for path in inside
            for owner in owners[path]
            if isinstance(owner, nn.Module)
        )
        if heard:
            pending.extend(number for number, frame in enumerate(frames) if frame.parent == index)
        else:
            yield index
