"""Attention masks in transformers' and fairseq's forms: adding prompts, and telling tokens from padding."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import nn


def grow_mask(mask: Any, num_prompts: int, grow_queries: bool, true_is_padding: bool = False) -> torch.Tensor:
    """Let every token attend to `num_prompts` new tokens in front.

    Args:
        mask: `(batch, keys)` with 1 for a token and 0 for padding; or `(batch, heads, queries or 1, keys)`, boolean or
            integer with 1 for "attends", or additive with 0 for it.
        num_prompts: number of tokens put in front of the keys.
        grow_queries: the prompts are queries as well; their rows attend everywhere, as what they give is thrown away.
        true_is_padding: fairseq's form instead, `(batch, keys)` and True for padding.

    Returns:
        The mask with `num_prompts` more keys, and more queries where it has queries.

    Raises:
        ValueError: for a mask of another form.
    """
    _check(mask)
    attends = 0 if true_is_padding or _is_additive(mask) else 1
    mask = nn.functional.pad(mask, (num_prompts, 0), value=attends)
    if mask.dim() == 4 and mask.shape[2] > 1 and grow_queries:
        mask = nn.functional.pad(mask, (0, 0, num_prompts, 0), value=attends)
    return mask


def real_tokens(mask: Any, batch_size: int, true_is_padding: bool = False) -> Optional[torch.Tensor]:
    """Return `(batch_size, tokens)`, True for tokens and False for padding, from a mask as in `grow_mask` or None.

    A token is what some token attends to, in the first head: masks may hide padding from every query, tokens outside of a
    window or chunk from one, and everything from a query that is padding itself.

    Raises:
        ValueError: for a mask of another form.
    """
    if mask is None:
        return None
    _check(mask)
    pairs = mask if mask.dim() == 2 else mask[:, 0]
    attends = pairs == 0 if true_is_padding or _is_additive(mask) else pairs != 0
    keys = attends if mask.dim() == 2 else attends.any(dim=1)
    return keys.expand(batch_size, -1)  # a mask may be one for all


def without_prompt_rows(output: Any, num_prompts: int) -> Any:
    """Return what attention returned, with the rows of prompts cut off its maps, `(batch, heads, rows, keys)`.

    So a map has a column for each prompt and a row for each token, as where prompts are keys and values only.
    """
    if not isinstance(output, tuple) or len(output) == 1:
        return output
    first, maps, *rest = output
    is_map = isinstance(maps, torch.Tensor) and maps.dim() == 4 and maps.shape[2] == maps.shape[3]
    return (first, maps[:, :, num_prompts:] if is_map else maps, *rest)


def _is_additive(mask: torch.Tensor) -> bool:
    return mask.dim() == 4 and mask.is_floating_point()


def _check(mask: Any) -> None:
    if not isinstance(mask, torch.Tensor) or mask.dim() not in (2, 4):
        shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(
            "Prompts and convolutions need an attention mask of shape (batch, keys) or (batch, heads, queries, keys), "
            f"got {shape}. Load the model with attn_implementation='sdpa' or 'eager'."
        )
