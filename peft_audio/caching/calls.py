"""The calls that a model makes in a forward pass, and the arguments of a call."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Optional

import torch
from torch import nn

from ..tuner.tuner_layer import first_tensor


MASK = "attention_mask"


@dataclass
class ModuleCall:
    """One call of a module during a forward pass.

    Attributes:
        path: the module's path from the model.
        parent: number of the call around it, None for the model's own.
        start: the moment when the call began. Moments are counted through the pass.
        end: the moment when it ended.
        argument: its first tensor argument, where `trace` was asked to keep it.
        output: what the module returned, where `trace` was asked to keep it.
    """

    path: str
    parent: Optional[int]
    start: int
    end: int = -1
    argument: Optional[torch.Tensor] = field(default=None, repr=False)
    output: Any = field(default=None, repr=False)


def trace(
    model: nn.Module, inputs: dict[str, Any], argument_of: int = -1, outputs_of: Collection[int] = ()
) -> list[ModuleCall]:
    """Run the model and return the calls of its modules in the order in which they begin.

    Args:
        model: in evaluation mode, where every pass makes the same calls.
        inputs: its arguments.
        argument_of: number of the call whose first tensor argument is kept.
        outputs_of: numbers of the calls whose outputs are kept.
    """
    own_thread = threading.get_ident()  # others may be running the model
    calls: list[ModuleCall] = []
    running: list[int] = []
    moments = count()
    paths = {module: path for path, module in model.named_modules()}

    def begin(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != own_thread:
            return
        calls.append(ModuleCall(paths[module], running[-1] if running else None, next(moments)))
        running.append(len(calls) - 1)
        if running[-1] == argument_of:
            calls[-1].argument = first_argument(args, kwargs)

    def end(module: nn.Module, args: tuple, output: Any) -> None:
        if threading.get_ident() != own_thread:
            return
        call = calls[running[-1]]
        call.end = next(moments)
        if running.pop() in outputs_of:
            call.output = output

    _run_with_hooks(model, inputs, begin, end)
    return calls


def _run_with_hooks(model: nn.Module, inputs: dict[str, Any], begin: Any, end: Any) -> None:
    handles = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
            # Before the hooks of others, because what is kept is what the module itself returned.
            handles.append(module.register_forward_hook(end, prepend=True))
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()


def first_argument(args: tuple, kwargs: dict[str, Any]) -> Optional[torch.Tensor]:
    """Return the first tensor among the arguments of a call, None if there is none."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)


def with_first_argument(args: tuple, kwargs: dict[str, Any], tensor: torch.Tensor) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments with another first tensor."""
    for index, value in enumerate(args):
        if isinstance(value, torch.Tensor):
            return (*args[:index], tensor, *args[index + 1 :]), kwargs
    name = next(name for name, value in kwargs.items() if isinstance(value, torch.Tensor))
    return args, {**kwargs, name: tensor}


def argument_names(model: nn.Module) -> list[str]:
    """Return the names of the model's arguments; of those in `**kwargs` the mask alone, which models hand on in it."""
    parameters = inspect.signature(model.forward).parameters
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    names = [name for name, parameter in parameters.items() if parameter.kind not in variable]
    takes_more = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return [*names, MASK] if takes_more and MASK not in names else names


def is_input(name: str) -> bool:
    """Whether an argument of this name may reach the frozen part: labels do not."""
    return "label" not in name


def tokens_of(outputs: Sequence[Any], num_tokens: Optional[int] = None) -> list[torch.Tensor]:
    """Return what encoder layers give, `(batch, tokens, d)` each, in the first `num_tokens` tokens; None for all."""
    return [first_tensor(output)[:, :num_tokens] for output in outputs]
