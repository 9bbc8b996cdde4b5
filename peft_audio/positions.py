"""What attention modules are told about positions, when prompts stand in front of their tokens.

Where a model adds positions to its input, attention is told nothing. The models here hand relative positions to every
layer, made for the tokens alone: prompts take the positions in front of the first token, as if they were tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
from torch import nn


@dataclass(frozen=True)
class PositionRule:
    """How one architecture's positions grow with the prompts.

    Args:
        grow: `(source, tokens, num_prompts, arguments) -> arguments to replace`, with the module at `source`, what
            attention will see (prompts and tokens, `(batch, prompts + tokens, d)`), and attention's arguments by name.
        crop: `(output, num_prompts) -> output` for what attention returns beside the tokens.
        source: path of the module that makes the positions, from the model without its head.
    """

    grow: Callable[[Optional[nn.Module], torch.Tensor, int, dict[str, Any]], dict[str, Any]]
    crop: Optional[Callable[[tuple, int], tuple]] = None
    source: Optional[Union[str, tuple[str, ...]]] = None


def _made_again(embed_positions: nn.Module, tokens: torch.Tensor, num_prompts: int, arguments: dict) -> dict:
    if arguments.get("relative_position_embeddings") is None:
        return {}
    return {"relative_position_embeddings": embed_positions(tokens)}


def _left_to_attention(source: None, tokens: torch.Tensor, num_prompts: int, arguments: dict) -> dict:
    return {"relative_pos": None}


def _grown_bias(first_attention: nn.Module, tokens: torch.Tensor, num_prompts: int, arguments: dict) -> dict:
    bias = arguments.get("position_bias")
    if bias is None:
        return {}  # the first layer makes it, for the prompts as well
    length = bias.shape[-1] + num_prompts
    to_prompts = first_attention.compute_bias(length, num_prompts)[:, num_prompts:].to(bias.dtype)
    grown = torch.cat([to_prompts.repeat(tokens.shape[0], 1, 1), bias], dim=2)
    # What the prompts themselves attend to is thrown away, so their rows may hold anything.
    return {"position_bias": nn.functional.pad(grown, (0, 0, num_prompts, 0))}


def _cropped_bias(output: tuple, num_prompts: int) -> tuple:
    states, weights, bias, *rest = output
    return (states, weights, bias[:, num_prompts:, num_prompts:], *rest)


# wav2vec2-conformer and wav2vec2-bert: embeddings of relative positions, or rotations, made once for all layers.
CONFORMER_POSITIONS = PositionRule(_made_again, source="encoder.embed_positions")
# SEW-D: attention works the positions out for itself where it is given none.
DISENTANGLED_POSITIONS = PositionRule(_left_to_attention)
# WavLM: the first layer's attention makes a bias, `(batch * heads, tokens, tokens)`, that every layer hands on.
BIAS_POSITIONS = PositionRule(_grown_bias, _cropped_bias, source="encoder.layers.0.attention")
