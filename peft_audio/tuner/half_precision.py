"""Half the memory for what the backward pass through a frozen layer needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Optional, Union

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from ..upstream.autograd import is_parameter
from .encoder_layer import EncoderTunerLayer


PADDED_TOKENS, SMALLEST_HEAD = 32, 8
"""Attention's kernels on GPUs save a number for each head and token, and infinity for each that is missing to this many.

Heads are no narrower than the second number, so these are fewer than `batch * PADDED_TOKENS * hidden_size / SMALLEST_HEAD`.
"""


@dataclass(frozen=True)
class Half:
    """A tensor in float16, divided by `scale`."""

    values: torch.Tensor
    scale: torch.Tensor


# What stands for a saved tensor: half of it and its shape, or all of it and None.
Saved = tuple[Union[Half, torch.Tensor], Optional[torch.Size]]


def save_activations_in_half(model: nn.Module, enabled: bool = True) -> nn.Module:
    """Keep the activations that adapted layers save for the backward pass in float16, half their float32 size, in place.

    The forward pass and the loss stay as they are; gradients, computed from rounded activations, are off by far less than
    a percent. Every tensor is scaled by its largest element, so none is too large for float16. It costs far less time
    than gradient checkpointing. Where a layer is checkpointed, or compiled, or its activations are in half precision
    already, nothing changes.

    Args:
        model: a model with adapters of this package on encoder layers.
        enabled: False takes it back.

    Returns:
        The same model.

    Raises:
        ValueError: if no encoder layer has such adapters.

    Examples:
        >>> base_model = ASTForAudioClassification(ASTConfig(hidden_size=12, num_hidden_layers=1))
        >>> model = get_peft_model(base_model, peft_audio.IPETConfig())
        >>> peft_audio.save_activations_in_half(model) is model
        True
    """
    layers = [module for module in model.modules() if isinstance(module, EncoderTunerLayer)]
    if not layers:
        raise ValueError(
            "save_activations_in_half needs a model whose encoder layers have adapters of peft_audio, got "
            f"{type(model).__name__} without any. Call get_peft_model first."
        )
    for layer in layers:
        layer.save_activations_with(saved_in_half if enabled else None)
    return model


@contextmanager
def saved_in_half(hidden_states: torch.Tensor) -> Iterator[None]:
    """Keep in float16 what autograd saves in float32 within, until the backward pass.

    These are all tensors of the size of `hidden_states`, `(batch, tokens, hidden_size)`, or larger. Smaller ones (a
    softmax's denominators, a norm's statistics) are few, and errors in them reach every element. The denominators that
    kernels pad are no smaller where there are few tokens.
    """
    kept: dict[tuple, tuple[torch.Tensor, Half]] = {}
    of_a_token = hidden_states.numel() // max(1, hidden_states.shape[1])
    min_size = max(hidden_states.numel(), of_a_token * PADDED_TOKENS // SMALLEST_HEAD + 1)
    del hidden_states  # what is saved refers to this function's variables

    def pack(tensor: torch.Tensor) -> Saved:
        if tensor.dtype != torch.float32 or tensor.numel() < min_size or is_parameter(tensor):
            return tensor.detach(), None  # as it is, an output would keep its own graph alive
        # Two operations may save the same, in another shape.
        key = (tensor.data_ptr(), tensor.numel(), None if tensor.is_contiguous() else (tensor.shape, tensor.stride()))
        if key not in kept:
            kept[key] = tensor, _halve(tensor.detach())  # with the original, whose address stays its own so
        return kept[key][1], tensor.shape

    with saved_tensors_hooks(pack, _unpack):
        yield
    kept.clear()


def _halve(tensor: torch.Tensor) -> Half:
    largest = torch.linalg.vector_norm(tensor, torch.inf).clamp_min(torch.finfo(tensor.dtype).tiny)
    return Half(torch.div(tensor, largest, out=torch.empty_like(tensor, dtype=torch.float16)), largest)


def _unpack(saved: Saved) -> torch.Tensor:
    kept, shape = saved
    if isinstance(kept, Half) and shape is not None:
        return kept.values.float().mul_(kept.scale).view(shape)
    assert isinstance(kept, torch.Tensor)
    return kept
