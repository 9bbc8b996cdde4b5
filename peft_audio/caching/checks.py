"""Running the frozen part, and finding out beforehand whether states of it can take its place."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ..tuner.training_setup import LAYERDROP
from .plan import Plan
from .replay import Call
from .split_point import Cut, first_argument, frozen_modules


SPEC_AUGMENT = ("mask_time_prob", "mask_feature_prob")


class _ReachedError(Exception):
    def __init__(self, states: torch.Tensor) -> None:
        self.states = states


def states_at(model: nn.Module, cut: Cut, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what enters the cut, and run nothing after it."""

    def stop(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        raise _ReachedError(first_argument(args, kwargs))

    handle = model.get_submodule(cut.path).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**inputs)
    except _ReachedError as reached:
        return reached.states
    finally:
        handle.remove()
    raise RuntimeError(f"{cut.path!r} did not run.")


def check_replay(model: nn.Module, plan: Plan, inputs: dict[str, torch.Tensor], states: torch.Tensor) -> None:
    """Raise ValueError if the model does not give the same from its states as from its input."""
    expected = model(**inputs)
    call = Call(model, plan, states)
    try:
        received = model(**{**inputs, plan.main: torch.zeros_like(inputs[plan.main])})
    finally:
        call.end()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor) and not _is_close(received[name], value):
            raise ValueError(
                f"From the states that enter {plan.cut.path!r} alone, {type(model).__name__} does not give the {name} "
                "that it gives from the input: what comes after needs more of the frozen part, e.g. hidden states of "
                "other layers (use_weighted_layer_sum, output_hidden_states). Train from the input, or only the head."
            )


def check_deterministic(model: nn.Module, base: nn.Module, cut: Cut, inputs: dict[str, torch.Tensor]) -> None:
    """Raise ValueError if what enters the cut is another one in training mode, or differs from run to run."""
    # Some act now and then only, so a run without them proves nothing.
    at_times = _fields(base.config, LAYERDROP)
    if getattr(base.config, "apply_spec_augment", False):
        at_times += _fields(base.config, SPEC_AUGMENT)
    if not at_times and _is_as_in_evaluation(model, base, cut, inputs):
        return
    modules = [
        f"{path} ({type(module).__name__})"
        for path, module in sorted(frozen_modules(base, cut.after))
        if getattr(module, "p", 0)
        and isinstance(module, nn.modules.dropout._DropoutNd)
        or isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    more = [f"and {len(modules) - 4} more modules"] if len(modules) > 4 else []
    dropout = _fields(base.config, [name for name in base.config.to_dict() if "dropout" in name])
    causes = ", ".join([*at_times, *dropout, *modules[:4], *more])
    raise ValueError(
        f"Before {cut.path!r}, {type(base).__name__} computes something else in training mode than in evaluation mode: "
        f"{causes or 'no field of the configuration tells why'}. Cached states could only be those of evaluation mode. "
        "Set dropout, layerdrop and masking to 0 when loading the model (from_pretrained(..., hidden_dropout=0.0)), or "
        "accept a training that differs from the one without cache: deterministic=True."
    )


def _fields(config: Any, names: Iterable[str]) -> list[str]:
    values = {name: getattr(config, name, None) for name in names}
    return [f"config.{name}={value}" for name, value in values.items() if isinstance(value, float) and value > 0]


def _is_as_in_evaluation(model: nn.Module, base: nn.Module, cut: Cut, inputs: dict[str, torch.Tensor]) -> bool:
    expected = states_at(base, cut, inputs)
    with undisturbed(model):
        model.train()
        for seed in range(2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            if not _is_close(states_at(base, cut, inputs), expected):
                return False
    return True


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Within, the model may be run in any mode: its modes and buffers and the random numbers are as before then."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        for module, mode in modes:
            module.training = mode
        for buffer, before in buffers:
            if not torch.equal(buffer, before):
                buffer.copy_(before)


def _is_close(first: torch.Tensor, second: torch.Tensor) -> bool:
    first, second = first.float(), second.float()
    return torch.allclose(first, second, rtol=1e-4, atol=1e-5 * max(1.0, float(second.abs().max())), equal_nan=True)
