"""A different adapter, with its own head, for each sample of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Optional

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..heads.weighted_layer_sum import LayerWeights
from ..upstream.peft_modules import adapter_names as adapter_names_of
from ..upstream.peft_modules import adapters_of, only_adapter
from ..utils.forward_pass import ForwardPass
from .samples import join, samples_by_adapter, take
from .tuner_layer import HookedTunerLayer


BASE = "__base__"  # PEFT's name for "no adapter" in a mixed batch


@contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str]) -> Iterator[None]:
    """Within, a call of `model` gives each sample the adapter of that name, "__base__" for none.

    The backbone runs once, and every adapter on its own samples. Where that cannot be, because the adapters have
    different numbers of prompts or weight the layers differently, the samples of each adapter run through the model on
    their own; the loss is the mean over all samples either way.

    Args:
        model: the base model with adapters on it, in evaluation mode.
        adapter_names: one name for each sample.

    Raises:
        ValueError: if the model is in training mode, a name is unknown, or (when called) the batch has another size.
    """
    adapter_names = list(adapter_names)
    _check(model, adapter_names)
    samples = samples_by_adapter(adapter_names)
    run = _run_once if _fit_together(model, list(samples)) else _run_each

    def forward(*args: Any, **kwargs: Any) -> Any:
        _check_size(len(adapter_names), args, kwargs)
        with _forward(model, usual):
            # A whole call of the model: hooks on it take their part too.
            return run(model, samples, args, kwargs)

    usual = vars(model).get("forward")
    with _forward(model, forward):
        yield


def _fit_together(model: nn.Module, adapter_names: list[str]) -> bool:
    """Whether one forward pass can serve all of these adapters."""
    for module in model.modules():
        if isinstance(module, HookedTunerLayer):
            if not module.can_mix(adapter_names):
                return False
        elif isinstance(module, BaseTunerLayer):
            return False
        elif isinstance(module, AuxiliaryTrainingWrapper) and isinstance(module.original_module, LayerWeights):
            return False  # one set of weights for the whole batch
    return True


def _run_once(model: nn.Module, samples: dict[str, torch.Tensor], args: tuple, kwargs: dict[str, Any]) -> Any:
    forward_pass = ForwardPass.of(model)
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                stack.enter_context(_forward(module, partial(_head_by_sample, module, samples)))
        forward_pass.samples = samples
        try:
            return model(*args, **kwargs)
        finally:
            forward_pass.samples = None


def _head_by_sample(head: nn.Module, samples: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
    size = sum(map(len, samples.values()))
    outputs = []
    for name, indices in samples.items():
        rows, named = take((args, kwargs), indices, size)
        with only_adapter(head, None if name == BASE else name):
            outputs.append(type(head).forward(head, *rows, **named))
    return join(outputs, list(samples.values()), "output")


def _run_each(model: nn.Module, samples: dict[str, torch.Tensor], args: tuple, kwargs: dict[str, Any]) -> Any:
    size = sum(map(len, samples.values()))
    outputs = []
    for name, indices in samples.items():
        rows, named = take((args, kwargs), indices, size)
        with only_adapter(model, None if name == BASE else name):
            outputs.append(model(*rows, **named))
    return join(outputs, list(samples.values()), "output")


@contextmanager
def _forward(model: nn.Module, forward: Optional[Callable]) -> Iterator[None]:
    """Within, `model` runs `forward`, None for its class's own."""
    before = vars(model).pop("forward", None)
    if forward is not None:
        model.forward = forward
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        if before is not None:
            model.forward = before


def _check(model: nn.Module, adapter_names: list[str]) -> None:
    if model.training:
        raise ValueError(
            "`adapter_names` (a different adapter for each sample of a batch) is for inference, but the model is in "
            "training mode. Call model.eval() first."
        )
    known = {BASE}
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            known |= adapter_names_of(module)
        elif isinstance(module, AuxiliaryTrainingWrapper):
            known |= adapters_of(module)
    unknown = sorted({repr(name) for name in adapter_names if not isinstance(name, str) or name not in known})
    if unknown:
        raise ValueError(
            f"`adapter_names` must name adapters of the model, got {', '.join(unknown)}. Its adapters: "
            f"{', '.join(map(repr, sorted(known - {BASE})))}; {BASE!r} is the base model."
        )


def _check_size(expected: int, args: tuple, kwargs: dict[str, Any]) -> None:
    sizes = {len(value) for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.dim()}
    if expected not in sizes:
        raise ValueError(
            f"`adapter_names` must have one name for each sample, got {expected} names for a batch of "
            f"{', '.join(map(str, sorted(sizes))) or 'no'} samples."
        )
