"""Samples of a batch that belong together: taking them out of what a model is given, and joining what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Cache
from transformers.utils import ModelOutput


def samples_by_adapter(adapter_names: list[str]) -> dict[str, torch.Tensor]:
    """Return the indices of the samples by the name of their adapter."""
    return {
        name: torch.tensor([i for i, other in enumerate(adapter_names) if other == name]) for name in adapter_names
    }


def take(value: Any, indices: torch.Tensor, batch_size: int) -> Any:
    """Return `value` with only the samples `indices` of every tensor that has one row a sample."""
    if isinstance(value, torch.Tensor) and value.dim() and len(value) == batch_size:
        return value[indices.to(value.device)]
    if isinstance(value, Mapping):
        rows = {key: take(item, indices, batch_size) for key, item in value.items()}
        return type(value)(**rows) if isinstance(value, ModelOutput) else rows
    if isinstance(value, (tuple, list)):
        return type(value)(take(item, indices, batch_size) for item in value)
    return value


def join(values: list[Any], samples: list[torch.Tensor], name: str) -> Any:
    """Put what was given for the `samples` of each adapter together into what the whole batch gives.

    Raises:
        ValueError: if tensors differ in shape; `name` says whose they are.
    """
    first = values[0]
    if isinstance(first, Cache):
        return None  # each is of its own samples
    if isinstance(first, torch.Tensor):
        return _join_tensors(values, samples, name)
    if isinstance(first, Mapping):
        return type(first)(**{key: join([value[key] for value in values], samples, key) for key in first})
    if isinstance(first, (tuple, list)):
        return type(first)(join(list(items), samples, name) for items in zip(*values))
    return first


def _join_tensors(tensors: list[torch.Tensor], samples: list[torch.Tensor], name: str) -> torch.Tensor:
    sizes = [len(indices) for indices in samples]
    first = tensors[0]
    if first.dim() == 0:
        return torch.stack([tensor * size for tensor, size in zip(tensors, sizes)]).sum() / sum(sizes)
    if any(tensor.shape != (size, *first.shape[1:]) for tensor, size in zip(tensors, sizes)):
        raise ValueError(
            f"The {name} of the adapters differ in shape, {', '.join(str(tuple(t.shape)) for t in tensors)}, and cannot "
            "be one batch (attention maps have a column for each prompt). Leave them out, or run one batch per adapter."
        )
    joined = first.new_empty(sum(sizes), *first.shape[1:])
    for tensor, indices in zip(tensors, samples):
        joined[indices.to(joined.device)] = tensor
    return joined
