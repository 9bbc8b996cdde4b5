"""Keys and values beyond an attention module's own tokens, let in where transformers' attention functions are called.

So prompts cost two small products for the whole batch, and no rows of queries or outputs. It needs a module that looks its
attention function up in transformers' `AttentionInterface`, by its configuration, and that makes keys and values with
`k_proj` and `v_proj`; for others, prompts are put in front of the tokens that attention reads.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import torch
from torch import nn
from transformers import AttentionInterface

from ..utils.per_thread import PerThread
from .prompt_gradient import attend_to_frozen_tokens


NAME = "peft_audio"


class ExtraTokens(NamedTuple):
    """Tokens that are keys and values only, as attention reads its own: `(batch or 1, extra tokens, hidden_size)`.

    Attributes:
        front: those in front of attention's own tokens, the prompts; one row stands for all samples. None without.
        behind: those that follow its own tokens. None without.
    """

    front: Optional[torch.Tensor] = None
    behind: Optional[torch.Tensor] = None


class Running(PerThread):
    """Whether the function that the model is set to is running, which may ask for its own name."""

    def __init__(self) -> None:
        self.is_on = False


class AttentionConfig:
    """The configuration of an attention module, except that it names this package's function. The model's own stays as
    it is."""

    def __init__(self, config: Any) -> None:
        self.original = config
        self.running = Running()

    def __getattr__(self, name: str) -> Any:
        if name == "original":  # not there yet: while a copy is being made
            raise AttributeError(name)
        return getattr(self.original, name)

    @property
    def _attn_implementation(self) -> str:
        return self.original._attn_implementation if self.running.is_on else NAME


def takes_extra_keys(attention: nn.Module) -> bool:
    """Whether `let_in` works for this module."""
    forward = inspect.unwrap(type(attention).forward)
    hands_on = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(forward).parameters.values())
    has_parts = all(hasattr(attention, name) for name in ("config", "k_proj", "v_proj"))
    return hands_on and has_parts and "ALL_ATTENTION_FUNCTIONS" in forward.__code__.co_names


def let_in(attention: nn.Module) -> None:
    """Make an attention module take the argument `extra_tokens`, `ExtraTokens` or None."""
    attention.config = AttentionConfig(attention.config)


def keep_out(attention: nn.Module) -> None:
    """Undo `let_in`."""
    if isinstance(getattr(attention, "config", None), AttentionConfig):
        attention.config = attention.config.original


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Optional[torch.Tensor],
    extra_tokens: Optional[ExtraTokens] = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Attention function of transformers: the one that the model is set to, with the extra keys and values.

    `query`, `key` and `value` are `(batch, heads, tokens, head_dim)`, `attention_mask` has a column for each extra token.
    """
    running = module.config.running
    running.is_on = True
    try:
        function = _function_of(module)
        if extra_tokens is None:
            return function(module, query, key, value, attention_mask, **kwargs)
        return _attend_to_more(function, module, query, key, value, attention_mask, extra_tokens, **kwargs)
    finally:
        running.is_on = False


def _attend_to_more(
    function: Callable,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Optional[torch.Tensor],
    tokens: ExtraTokens,
    **kwargs: Any,
) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
    front, behind = ((_heads(module.k_proj, t, key), _heads(module.v_proj, t, value)) for t in tokens)
    keys, values = (_side_by_side(*parts) for parts in zip(front, (key, value), behind))
    if _only_trains(tokens.front, query, key, value, *behind) and not kwargs.get("dropout"):
        output = attend_to_frozen_tokens(function, module, query, keys, values, *front, attention_mask, **kwargs)
        if output is not None:
            return output, None
    return function(module, query, keys, values, attention_mask, **kwargs)


def _function_of(module: nn.Module) -> Callable:
    names = inspect.unwrap(type(module).forward).__globals__
    own = names.get("eager_attention_forward")
    return names["ALL_ATTENTION_FUNCTIONS"].get_interface(module.config._attn_implementation, own)


def _only_trains(prompts: Optional[torch.Tensor], *states: Optional[torch.Tensor]) -> bool:
    trains = torch.is_grad_enabled() and prompts is not None and prompts.requires_grad
    return trains and not any(state is not None and state.requires_grad for state in states)


def _heads(projection: nn.Module, tokens: Optional[torch.Tensor], like: torch.Tensor) -> Optional[torch.Tensor]:
    """Project `(batch or 1, tokens, hidden_size)` to `(batch, heads, tokens, head_dim)`."""
    if tokens is None:
        return None
    batch_size, num_heads, _, head_dim = like.shape
    return projection(tokens).unflatten(-1, (num_heads, head_dim)).transpose(1, 2).expand(batch_size, -1, -1, -1)


def _side_by_side(*states: Optional[torch.Tensor]) -> torch.Tensor:
    # Heads come last in memory, so joined in that order whole tokens are copied at a time.
    return torch.cat([part.transpose(1, 2) for part in states if part is not None], dim=1).transpose(1, 2)


AttentionInterface.register(NAME, attend)
