"""Masks that hide the first tokens from an attention module whose form of masks is not known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import torch
from torch import nn

from ..backbones.spec import EncoderSpec
from .calls import Call
from .tuner_layer import first_tensor


NUM_HIDDEN = 2  # in the trial of a form
CLOSE = 1e-3  # relative to the largest number

# From the tokens, `(batch, tokens, d)`, and the number of tokens to hide, the first ones, to a mask.
Form = Callable[[torch.Tensor, int], torch.Tensor]


def padding(tokens: torch.Tensor, num_hidden: int) -> torch.Tensor:
    """Return fairseq's form: `(batch, tokens)`, True for what is hidden."""
    return (torch.arange(tokens.shape[1], device=tokens.device) < num_hidden).expand(len(tokens), -1)


def integers(tokens: torch.Tensor, num_hidden: int) -> torch.Tensor:
    """Return `(batch, tokens)`, 0 for what is hidden and 1 for the rest."""
    return (~padding(tokens, num_hidden)).long()


def boolean(tokens: torch.Tensor, num_hidden: int) -> torch.Tensor:
    """Return `(batch, 1, tokens, tokens)`, False in the columns of what is hidden."""
    return ~padding(tokens, num_hidden)[:, None, None].expand(-1, 1, tokens.shape[1], -1)


def additive(tokens: torch.Tensor, num_hidden: int) -> torch.Tensor:
    """Return `(batch, 1, tokens, tokens)`, the smallest number in the columns of what is hidden, else 0."""
    hidden = ~boolean(tokens, num_hidden)
    return torch.zeros(hidden.shape, dtype=tokens.dtype, device=tokens.device).masked_fill(
        hidden, torch.finfo(tokens.dtype).min
    )


def form_of_mask(attention: nn.Module, spec: EncoderSpec, call: Call) -> Optional[Form]:
    """Return the form of masks by which the attention module hides tokens; None if it takes none of those known."""
    if _mask_name(spec) not in call.names:
        return None
    forms = (padding,) if spec.padding_mask is not None else (additive, boolean, integers)
    return next((form for form in forms if _hides(attention, spec, call, form)), None)


def attention_output(
    attention: nn.Module, spec: EncoderSpec, call: Call, mask: Optional[torch.Tensor] = None
) -> torch.Tensor:
    """Return what attention gives for a call, with a mask or the call's own, `(batch, tokens, d)`. Runs no hooks."""
    if mask is not None:
        call = call.replace(_mask_name(spec), mask)
    output = first_tensor(attention.forward(*call.args, **call.kwargs))
    return output if spec.batch_first else output.transpose(0, 1)


def tokens_of(spec: EncoderSpec, call: Call) -> torch.Tensor:
    """Return the tokens that a call of attention gives it, `(batch, tokens, d)`."""
    tokens = call.get(call.names[0])
    return tokens if spec.batch_first else tokens.transpose(0, 1)


def _hides(attention: nn.Module, spec: EncoderSpec, call: Call, form: Form) -> bool:
    """Whether a mask of this form changes nothing where it hides nothing, and makes what it hides irrelevant."""
    tokens = tokens_of(spec, call)
    noise = torch.cat([torch.randn_like(tokens[:, :NUM_HIDDEN]), tokens[:, NUM_HIDDEN:]], dim=1)
    other = call.replace_object(call.get(call.names[0]), noise if spec.batch_first else noise.transpose(0, 1))
    try:
        free = attention_output(attention, spec, call)
        open_, first, second = (
            attention_output(attention, spec, each, form(tokens, number))
            for each, number in ((call, 0), (call, NUM_HIDDEN), (other, NUM_HIDDEN))
        )
    except (TypeError, ValueError, RuntimeError, AssertionError):
        return False
    first, second = first[:, NUM_HIDDEN:], second[:, NUM_HIDDEN:]
    return _close(open_, free) and _close(first, second) and not _close(first, free[:, NUM_HIDDEN:])


def _close(first: torch.Tensor, second: torch.Tensor) -> bool:
    return bool((first - second).abs().max() <= CLOSE * second.abs().max())


def _mask_name(spec: EncoderSpec) -> str:
    return spec.padding_mask or "attention_mask"
