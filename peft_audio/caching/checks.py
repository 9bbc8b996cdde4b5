"""Running the frozen part, and checking beforehand that cached states can take its place."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable
from typing import Any, Optional

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..tuner.training_setup import LAYERDROP
from ..upstream.torch_modules import drops_out, is_batch_norm
from ..utils.undisturbed import undisturbed
from .calls import first_argument, tokens_of
from .plan import Plan
from .replay import StandIns
from .split_point import SplitPoint, frozen_modules


SPEC_AUGMENT = ("mask_time_prob", "mask_feature_prob")


class _ReachedError(Exception):
    def __init__(self, states: Optional[torch.Tensor]) -> None:
        self.states = states


def states_at(model: nn.Module, split_point: SplitPoint, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the states that enter the split point, `(batch, ...)`. Nothing after it is run.

    Raises:
        RuntimeError: the module at the split point did not run, or was given no tensor.
    """
    if split_point.taken:
        return _states_taken(model, split_point, inputs)
    own_thread = threading.get_ident()

    def stop(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == own_thread:  # others may be running the model
            raise _ReachedError(first_argument(args, kwargs))

    handle = model.get_submodule(split_point.path).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**inputs)
    except _ReachedError as reached:
        if reached.states is not None:
            return reached.states
    finally:
        handle.remove()
    raise RuntimeError(f"{split_point.path!r} did not run, or was given no tensor.")


def _states_taken(model: nn.Module, split_point: SplitPoint, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    own_thread, outputs = threading.get_ident(), []

    def take(module: nn.Module, args: tuple, output: Any) -> None:
        if threading.get_ident() == own_thread:  # others may be running the model
            outputs.append(output)
            if len(outputs) == len(split_point.taken):
                raise _ReachedError(torch.cat(tokens_of(outputs, split_point.num_tokens), dim=1))

    layers = [model.get_submodule(split_point.replaced[number]) for number in split_point.taken]
    handles = [layer.register_forward_hook(take, prepend=True) for layer in layers]
    try:
        model(**inputs)
    except _ReachedError as reached:
        assert reached.states is not None
        return reached.states
    finally:
        for handle in handles:
            handle.remove()
    raise RuntimeError(f"The layers up to {split_point.path!r} did not all run.")


def check_replay(model: nn.Module, plan: Plan, inputs: dict[str, torch.Tensor], states: torch.Tensor) -> None:
    """Check that the model returns the same from its states as from its input.

    Raises:
        ValueError: it does not.
    """
    expected = model(**inputs)
    with StandIns(model, plan, states).installed():
        received = model(**{**inputs, plan.main: torch.zeros_like(inputs[plan.main])})
    for name, value in expected.items():
        if isinstance(value, torch.Tensor) and not is_close(received[name], value):
            raise ValueError(
                f"From the states that enter {plan.split_point.path!r} alone, {type(model).__name__} does not give the "
                f"{name} that it gives from the input: what comes after needs more of the frozen part, e.g. hidden "
                "states of other layers (use_weighted_layer_sum, output_hidden_states). Train from the input, or only "
                "the head."
            )


def check_deterministic(
    train: Callable[[], object], base: PreTrainedModel, split_point: SplitPoint, inputs: dict[str, torch.Tensor]
) -> None:
    """Check that what enters the split point is the same in training mode as in evaluation mode, and in every run.

    Args:
        train: sets training mode, as it will be set for training.
        base: the model, in evaluation mode.
        split_point: where its frozen part ends.
        inputs: its arguments.

    Raises:
        ValueError: it is not. The message names what may be the cause.
    """
    # These act now and then only, so a run without them proves nothing.
    at_times = _positive_fields(base, [name for name in base.config.to_dict() if name.endswith(LAYERDROP)])
    if getattr(base.config, "apply_spec_augment", False):
        at_times += _positive_fields(base, SPEC_AUGMENT)
    if not at_times and _is_as_in_evaluation(train, base, split_point, inputs):
        return
    dropout = _positive_fields(base, [name for name in base.config.to_dict() if "dropout" in name])
    causes = ", ".join([*at_times, *dropout, *_random_modules(base, split_point)])
    raise ValueError(
        f"Before {split_point.path!r}, {type(base).__name__} computes something else in training mode than in evaluation "
        f"mode: {causes or 'no field of the configuration tells why'}. Cached states could only be those of evaluation "
        "mode. Set dropout, layerdrop and masking to 0 when loading the model "
        "(from_pretrained(..., hidden_dropout=0.0)), or accept a training that differs from the one without cache: "
        "deterministic=True."
    )


def _positive_fields(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    values = {name: getattr(model.config, name, None) for name in names}
    return [f"config.{name}={value}" for name, value in values.items() if isinstance(value, float) and value > 0]


def _random_modules(model: nn.Module, split_point: SplitPoint) -> list[str]:
    modules = [
        f"{path} ({type(module).__name__})"
        for path, module in sorted(frozen_modules(model, split_point.after))
        if drops_out(module) or is_batch_norm(module)
    ]
    return modules[:4] + ([f"and {len(modules) - 4} more modules"] if len(modules) > 4 else [])


def _is_as_in_evaluation(
    train: Callable[[], object], base: nn.Module, split_point: SplitPoint, inputs: dict[str, torch.Tensor]
) -> bool:
    expected = states_at(base, split_point, inputs)
    with torch.no_grad(), undisturbed(base):
        train()
        for seed in range(2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            if not is_close(states_at(base, split_point, inputs), expected):
                return False
    return True


def is_close(first: torch.Tensor, second: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Whether the tensors are the same but for rounding.

    Args:
        first: the one.
        second: the other.
        tolerance: difference that counts as rounding, as a part of the largest value.
    """
    first, second = first.float(), second.float()
    largest = max(1.0, float(second.abs().max()))
    return torch.allclose(first, second, rtol=10 * tolerance, atol=tolerance * largest, equal_nan=True)


def is_same_sample(first: torch.Tensor, second: torch.Tensor, autocast: Optional[torch.dtype]) -> bool:
    """Whether two computations gave the states of a sample, in batches of different sizes or on different devices.

    Args:
        first: states.
        second: states.
        autocast: dtype of autocast in either computation, None for none.
    """
    if first.shape != second.shape:
        return False
    precision = torch.finfo(autocast or first.dtype)
    tolerance = 1e-5 if precision.bits >= 32 else 4 * precision.eps
    if first.device.type != "cpu" or second.device.type != "cpu":
        tolerance = max(tolerance, 1e-2)  # GPUs multiply float32 in TF32, as the size of the batch may have it
    return is_close(first.cpu(), second.cpu(), tolerance)
