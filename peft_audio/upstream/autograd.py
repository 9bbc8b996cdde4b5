"""What torch's autograd keeps private: who runs a forward pass and how, saved tensors and the kernels behind them."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import nn


LOG_SUM_EXP = ("_saved_logsumexp", "_saved_log_sumexp")  # in torch's fused attention kernels, by kernel
DEPTH = 4  # how far in front of the output the kernel is looked for: transformers transposes and copies what it gives


def is_recomputation() -> bool:
    """Whether gradient checkpointing runs a forward pass again, from within the backward pass. Nothing else does."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def may_run_again() -> bool:
    """Whether checkpointing may be what runs this forward pass: without gradient, or with hooks on saved tensors."""
    if torch.compiler.is_compiling():
        return False
    return not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def is_transformed() -> bool:
    """Whether torch.func (grad, vmap, ...) or forward-mode differentiation is running, which take no hooks on tensors."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def saved_log_sum_exp(node: Any) -> tuple[str, Optional[torch.Tensor]]:
    """Return the name of the fused attention kernel behind an output's `grad_fn`, and what it saved.

    The saved tensor is None where no kernel that saves one is found.
    """
    for _ in range(DEPTH):
        for name in LOG_SUM_EXP:
            if hasattr(node, name):
                return node.name(), getattr(node, name)
        if node is None or not node.next_functions:
            break
        node = node.next_functions[0][0]
    return "", None


def is_parameter(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a parameter, or a view of one: a linear map saves a transposed view."""
    whole = tensor._base if tensor._is_view() else tensor
    return isinstance(whole, nn.Parameter)
