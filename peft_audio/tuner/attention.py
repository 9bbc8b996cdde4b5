"""Prompts as keys and values only, where transformers' attention functions are called.

So prompts cost two small products for the whole batch, and no rows of queries or outputs. Which attention modules can do
that is said in the table of backbones (`keys_and_values`). For all others, prompts stand in front of the tokens that
attention reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import torch
from torch import nn

from ..backbones.spec import EncoderSpec
from ..upstream.attention_interface import attention_function, register_attention_function
from ..upstream.transformers_models import attention_implementation
from ..utils.forward_pass import ForwardPass
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


class AttentionConfig:
    """The configuration of an attention module, except that it names this package's attention function.

    The model's own configuration stays as it is.
    """

    def __init__(self, config: Any, projections: tuple[str, str], forward_pass: ForwardPass) -> None:
        self.original = config
        self.projections = projections
        self.forward_pass = forward_pass

    def __getattr__(self, name: str) -> Any:
        if name == "original":  # not there yet: while a copy is being made
            raise AttributeError(name)
        return getattr(self.original, name)

    @property
    def _attn_implementation(self) -> str:
        return self.original._attn_implementation if self.forward_pass.current.in_attention else NAME


def takes_extra_tokens(attention: nn.Module, spec: EncoderSpec) -> bool:
    """Whether `install_extra_tokens` works for this module: the row says so, and it has the projections named there."""
    names = spec.keys_and_values
    return names is not None and all(hasattr(attention, name) for name in ("config", *names))


def install_extra_tokens(attention: Any, spec: EncoderSpec, forward_pass: ForwardPass) -> None:
    """Make an attention module take the argument `extra_tokens`, `ExtraTokens` or None."""
    if spec.keys_and_values is not None and not isinstance(attention.config, AttentionConfig):
        attention.config = AttentionConfig(attention.config, spec.keys_and_values, forward_pass)


def remove_extra_tokens(attention: Any) -> None:
    """Undo `install_extra_tokens`."""
    if isinstance(getattr(attention, "config", None), AttentionConfig):
        attention.config = attention.config.original


def attend(
    module: Any,
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
    state = module.config.forward_pass.current
    state.in_attention, state.extra_tokens_pending = True, False
    try:
        function = attention_function(module, module.config._attn_implementation)
        if extra_tokens is None:
            return function(module, query, key, value, attention_mask, **kwargs)
        return _attend_to_more(function, module, query, key, value, attention_mask, extra_tokens, **kwargs)
    finally:
        state.in_attention = False


def _attend_to_more(
    function: Callable,
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Optional[torch.Tensor],
    tokens: ExtraTokens,
    **kwargs: Any,
) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
    projections = [getattr(module, name) for name in module.config.projections]
    front, behind = (
        tuple(_heads(projection, some, like) for projection, like in zip(projections, (key, value))) for some in tokens
    )
    keys, values = (_side_by_side(*parts) for parts in zip(front, (key, value), behind))
    prompt_keys, prompt_values = front
    if attention_mask is None and _is_causal(module, query):
        attention_mask = _causal_mask(query, keys, keys.shape[2] - key.shape[2])
    is_first = _only_trains(tokens.front, query, key, value, *behind) and not kwargs.get("dropout")
    if is_first and prompt_keys is not None and prompt_values is not None:
        states, prompts = (query, keys, values), (prompt_keys, prompt_values)
        output = attend_to_frozen_tokens(function, module, states, prompts, attention_mask, **kwargs)
        if output is not None:
            return output, None
    return function(module, query, keys, values, attention_mask, **kwargs)


def _is_causal(module: Any, query: torch.Tensor) -> bool:
    """Whether the attention function would hide later tokens by itself, by a rule that miscounts with prompts in front.

    Flash attention counts from the last key, which is right.
    """
    can_count = "flash" in str(attention_implementation(module.config))
    return bool(getattr(module, "is_causal", False)) and query.shape[2] > 1 and not can_count


def _causal_mask(query: torch.Tensor, keys: torch.Tensor, num_prompts: int) -> torch.Tensor:
    """Return `(1, 1, queries, keys)`, True where a query may read a key: the prompts, and no later token than itself."""
    num_queries, num_keys = query.shape[2], keys.shape[2]
    rows, columns = (torch.arange(number, device=query.device) for number in (num_queries, num_keys))
    last = rows[:, None] + num_keys - num_queries
    return ((columns < num_prompts) | (columns <= last))[None, None]


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


register_attention_function(NAME, attend)
