"""A different adapter for each sample of a batch: every adapter's samples run on their own, with its own head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Optional

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


BASE = "__base__"  # PEFT's name for "no adapter" in a mixed batch


@contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str]) -> Iterator[None]:
    """Within, a call of `model` gives each sample the adapter of that name, "__base__" for none.

    The samples of one adapter are taken out of every tensor argument whose first dimension is the batch, and run
    together. The loss is the mean over all samples, as of a batch with a single adapter.

    Args:
        model: the base model with adapters on it, in evaluation mode.
        adapter_names: one name for each sample.

    Raises:
        ValueError: if the model is in training mode, a name is unknown, or (when called) the batch has another size.
    """
    adapter_names = list(adapter_names)
    _check(model, adapter_names)
    samples = {
        name: torch.tensor([i for i, other in enumerate(adapter_names) if other == name]) for name in adapter_names
    }

    def forward(*args: Any, **kwargs: Any) -> Any:
        _check_size(len(adapter_names), args, kwargs)
        outputs = []
        for name, indices in samples.items():
            rows = _rows((args, kwargs), indices, adapter_names)
            # A whole call of the model for each adapter: hooks on the model take their part too.
            with only_adapter(model, name), _forward(model, usual):
                outputs.append(model(*rows[0], **rows[1]))
        return _joined(outputs, list(samples.values()), "output")

    usual = vars(model).get("forward")
    with _forward(model, forward):
        yield


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


@contextmanager
def only_adapter(model: nn.Module, adapter_name: str) -> Iterator[None]:
    """Within, this adapter is the active one, in layers and heads; what asks for a gradient stays as it is."""
    modules = [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    before = [module._active_adapter for module in modules]
    for module in modules:
        # Not every adapter has a head of its own; layers take any name.
        has_it = adapter_name in getattr(module, "_adapters", [adapter_name])
        module._active_adapter = [adapter_name] if has_it and adapter_name != BASE else []
    try:
        yield
    finally:
        for module, active in zip(modules, before):
            module._active_adapter = active


def _check(model: nn.Module, adapter_names: list[str]) -> None:
    if model.training:
        raise ValueError(
            "`adapter_names` (a different adapter for each sample of a batch) is for inference, but the model is in "
            "training mode. Call model.eval() first."
        )
    known = {BASE}
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            known.update(module._all_available_adapter_names())
        elif isinstance(module, AuxiliaryTrainingWrapper):
            known.update(module._adapters)
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


def _rows(value: Any, indices: torch.Tensor, adapter_names: Sequence[str]) -> Any:
    """Return `value` with only the samples `indices` of every tensor that has one row a sample."""
    if isinstance(value, torch.Tensor) and value.dim() and len(value) == len(adapter_names):
        return value[indices.to(value.device)]
    if isinstance(value, Mapping):
        return {key: _rows(item, indices, adapter_names) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_rows(item, indices, adapter_names) for item in value)
    return value


def _joined(values: list[Any], samples: list[torch.Tensor], name: str) -> Any:
    """Put what the adapters gave for their `samples` together into what the whole batch gives."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        return _joined_tensors(values, samples, name)
    if isinstance(first, Mapping):
        return type(first)(**{key: _joined([value[key] for value in values], samples, key) for key in first})
    if isinstance(first, (tuple, list)):
        return type(first)(_joined(list(items), samples, name) for items in zip(*values))
    return first


def _joined_tensors(tensors: list[torch.Tensor], samples: list[torch.Tensor], name: str) -> torch.Tensor:
    sizes = [len(indices) for indices in samples]
    first = tensors[0]
    if first.dim() == 0:
        return sum(tensor * size for tensor, size in zip(tensors, sizes)) / sum(sizes)
    if any(tensor.shape != (size, *first.shape[1:]) for tensor, size in zip(tensors, sizes)):
        raise ValueError(
            f"The {name} of the adapters differ in shape, {', '.join(str(tuple(t.shape)) for t in tensors)}, and cannot "
            "be one batch (attention maps have a column for each prompt). Leave them out, or run one batch per adapter."
        )
    joined = first.new_empty(sum(sizes), *first.shape[1:])
    for tensor, indices in zip(tensors, samples):
        joined[indices.to(joined.device)] = tensor
    return joined
