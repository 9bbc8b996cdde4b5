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


LOG_SUM_EXP = ("_saved_logsumexp", "_saved_log_sumexp")  # in torch's fused kernels, by kernel
DEPTH = 4  # how far in front of the output the kernel is looked for: transformers transposes and copies what it gives


def attend_to_frozen_tokens(
    function: Callable,
    module: nn.Module,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    prompt_keys: torch.Tensor,
    prompt_values: torch.Tensor,
    attention_mask: Optional[torch.Tensor],
    **kwargs: Any,
) -> Optional[torch.Tensor]:
    """Return the output `(batch, queries, heads, head_dim)` of transformers' attention function `function`.

    Args:
        query: `(batch, heads, queries, head_dim)`, without gradient.
        keys, values: `(batch, heads, keys, head_dim)`; the prompts' come first, and no other has a gradient.
        prompt_keys, prompt_values: the prompts' alone.

    Returns:
        None where torch's kernel does not leave what this needs, the logarithm of the softmax's denominator.
    """
    if torch.compiler.is_compiling() or module.config._attn_implementation != "sdpa":
        return None
    # Checkpointing around this would not let the kernel's tensors be read here. Saved as it is, without `detach`, the
    # output would keep its own graph alive.
    with saved_tensors_hooks(torch.Tensor.detach, _same):
        asks = query.detach().requires_grad_()
        output, _ = function(module, asks, keys.detach(), values.detach(), attention_mask, **kwargs)
        log_sum_exp = _log_sum_exp(output.grad_fn)
    if log_sum_exp is None or log_sum_exp.dim() != 3:
        return None
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    return _PromptGradient.apply(prompt_keys, prompt_values, query, output.detach(), log_sum_exp, scale)


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _log_sum_exp(node: Any) -> Optional[torch.Tensor]:
    for _ in range(DEPTH):
        for name in LOG_SUM_EXP:
            if hasattr(node, name):
                return getattr(node, name)
        if node is None or not node.next_functions:
            return None
        node = node.next_functions[0][0]
    return None


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
