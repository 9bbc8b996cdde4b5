"""Attention to frozen tokens and trained prompts, with a backward pass through the prompts alone.

In the first adapted layer nothing but the prompts has a gradient, and torch would compute that of every key and value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from ..upstream.autograd import is_transformed, saved_log_sum_exp
from ..upstream.transformers_models import attention_implementation


UNSEEN = -1e30  # below it, all keys of a query are masked, and kernels differ
TOLERANCE = 1e-2  # of half precision; another base of the logarithm is off by 44 %

# By kernel and type of device: there are more of them than this was tried on, so each is looked at when first met.
_gives_log_sum_exp: dict[tuple[str, str], bool] = {}


def attend_to_frozen_tokens(
    function: Callable,
    module: nn.Module,
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    prompts: tuple[torch.Tensor, torch.Tensor],
    attention_mask: Optional[torch.Tensor],
    **kwargs: Any,
) -> Optional[torch.Tensor]:
    """Run transformers' attention function `function` with a backward pass through the prompts alone.

    Args:
        function: the attention function.
        module: the attention module.
        states: queries, keys and values, `(batch, heads, tokens, head_dim)`. Keys and values start with the prompts';
            nothing else has a gradient.
        prompts: keys and values of the prompts, `(batch, heads, prompts, head_dim)`.
        attention_mask: as the attention function takes it.
        **kwargs: further arguments of the attention function.

    Returns:
        The output `(batch, queries, heads, head_dim)`; None where torch's kernel does not save what this needs, the
        logarithm of the softmax's denominator.
    """
    query, keys, values = states
    if attention_implementation(module.config) != "sdpa" or not _is_plain(query):
        return None
    # Checkpointing around this would not let the kernel's tensors be read here. Saved as it is, without `detach`, the
    # output would keep its own graph alive.
    with saved_tensors_hooks(torch.Tensor.detach, _same):
        asks = query.detach().requires_grad_()
        output, _ = function(module, asks, keys.detach(), values.detach(), attention_mask, **kwargs)
        kernel, saved = saved_log_sum_exp(output.grad_fn)
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    log_sum_exp = _trusted(kernel, saved, query, keys, attention_mask, scale)
    if log_sum_exp is None:
        return None
    return _PromptGradient.apply(*prompts, query, output.detach(), log_sum_exp, scale)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has values, and nothing but autograd records what is done with it."""
    # Fake tensors, of which shapes are taken, have a type of their own.
    has_values = type(tensor) is torch.Tensor and not tensor.is_meta
    return has_values and not (torch.compiler.is_compiling() or is_transformed() or torch.jit.is_tracing())


def _trusted(
    kernel: str,
    saved: Optional[torch.Tensor],
    query: torch.Tensor,
    keys: torch.Tensor,
    attention_mask: Optional[torch.Tensor],
    scale: float,
) -> Optional[torch.Tensor]:
    """Return the log-sum-exp that a kernel saved, `(batch, heads, queries)`, None if it is not what is expected."""
    if saved is None or saved.shape[:2] != query.shape[:2]:
        return None
    # cuDNN's has a last dimension of 1, the memory-efficient kernel's is padded.
    log_sum_exp = saved.flatten(2)[..., : query.shape[2]]
    place = (kernel, query.device.type)
    if place not in _gives_log_sum_exp:
        _gives_log_sum_exp[place] = _is_log_sum_exp(log_sum_exp, query, keys, attention_mask, scale)
    return log_sum_exp if _gives_log_sum_exp[place] else None


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@torch.no_grad()
def _is_log_sum_exp(
    saved: torch.Tensor, query: torch.Tensor, keys: torch.Tensor, mask: Optional[torch.Tensor], scale: float
) -> bool:
    """Whether a kernel means by its saved tensor what `_PromptGradient` does, seen in a head of a sample."""
    with torch.autocast(query.device.type, enabled=False):
        scores = query[:1, :1].float() @ keys[:1, :1].float().transpose(-1, -2) * scale
    if mask is not None:
        mask = mask.expand(*saved.shape, keys.shape[2])[:1, :1]
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
    expected = scores.logsumexp(-1)
    in_use = expected > UNSEEN
    is_same = torch.allclose(saved[:1, :1][in_use].float(), expected[in_use], rtol=TOLERANCE, atol=TOLERANCE)
    return is_same and bool(in_use.any())  # where all is masked, nothing was seen


class _PromptGradient(torch.autograd.Function):
    """The identity on attention's output, with the gradient of the prompts' keys and values.

    With P the prompts' columns of the softmax and D the row sums of dO * O: dV = P^T dO, dK = s (P * (dO V^T - D))^T Q.
    """

    @staticmethod
    def forward(
        ctx: Any,
        keys: torch.Tensor,
        values: torch.Tensor,
        query: torch.Tensor,
        output: torch.Tensor,
        log_sum_exp: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        scores = (query @ keys.transpose(-1, -2)).to(log_sum_exp.dtype) * scale
        probabilities = (scores - log_sum_exp[..., : query.shape[2], None]).exp().to(query.dtype)
        ctx.save_for_backward(values, query, output, probabilities)
        ctx.scale = scale
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        values, query, output, probabilities = ctx.saved_tensors
        row_sums = (gradient * output).sum(-1).transpose(1, 2).unsqueeze(-1)
        gradient = gradient.transpose(1, 2)
        of_scores = probabilities * (gradient @ values.transpose(-1, -2) - row_sums) * ctx.scale
        return of_scores.transpose(-1, -2) @ query, probabilities.transpose(-1, -2) @ gradient, None, None, None, None
