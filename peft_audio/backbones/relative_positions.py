"""Relative positions when prompts stand in front of the tokens that attention reads.

Most models add positions to their input once, and attention gets none. The models here pass relative positions to the
attention of every layer, made for the tokens alone. Prompts take the positions in front of the first token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
from torch import nn

from ..upstream.hooks import owners_of_hooks, remove_hooks
from ..upstream.transformers_models import wavlm_position_bias


@dataclass(frozen=True)
class PositionRule:
    """How the relative positions of an architecture grow with prompts.

    Args:
        grow: `(source, tokens, num_prompts, arguments) -> arguments to replace`. It gets the module at `source`, what
            attention will read (prompts and tokens, `(batch, prompts + tokens, d)`), the number of prompts and
            attention's arguments by name.
        crop: `(output, num_prompts) -> output` for what attention returns beside the tokens.
        source: path of the module that makes the positions, from the model without its head.
        handed_on: the argument of encoder layers that takes positions which the layer before returned beside the
            tokens.

    Examples:
        An encoder whose `encode_positions` makes the positions of any sequence of tokens:

        >>> from peft_audio import PositionRule
        >>> rule = PositionRule(
        ...     grow=lambda source, tokens, num_prompts, arguments: {"position_embeddings": source(tokens)},
        ...     source="encode_positions",
        ... )
    """

    grow: Callable[[Optional[nn.Module], torch.Tensor, int, dict[str, Any]], dict[str, Any]]
    crop: Optional[Callable[[tuple, int], tuple]] = None
    source: Optional[Union[str, tuple[str, ...]]] = None
    handed_on: Optional[str] = None


class PositionDetach:
    """Two hooks of an attention module that detach the positions that layers hand on from the graph.

    Reentrant checkpointing marks all that a layer returns as needing a gradient, also a tensor that the layer was given
    by keyword. Run again, the layer then reaches into the graph that it is being run for, and the backward pass never
    ends. Frozen positions have no gradient to lose.
    """

    def __init__(self, argument: str) -> None:
        self.argument = argument

    def enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Forward pre-hook: detach the argument."""
        positions = kwargs.get(self.argument)
        return args, kwargs if positions is None else {**kwargs, self.argument: positions.detach()}

    def leave(self, module: nn.Module, args: tuple, output: tuple) -> tuple:
        """Forward hook: detach what is handed on."""
        states, weights, positions, *rest = output
        return (states, weights, positions.detach(), *rest)


def install_position_detach(
    attentions: Iterable[nn.Module], rule: Optional[PositionRule], source: Optional[nn.Module]
) -> None:
    """Put `PositionDetach` on the attention modules of layers that hand frozen positions on, unless they have it."""
    if rule is None or rule.handed_on is None or source is None or any(p.requires_grad for p in source.parameters()):
        return
    for attention in attentions:
        if not any(isinstance(owner, PositionDetach) for owner in owners_of_hooks(attention)):
            detach = PositionDetach(rule.handed_on)
            attention.register_forward_pre_hook(detach.enter, with_kwargs=True)
            attention.register_forward_hook(detach.leave)


def remove_position_detach(model: nn.Module) -> None:
    """Undo `install_position_detach`."""
    remove_hooks(model, PositionDetach)


def _made_again(embed_positions: Optional[nn.Module], tokens: torch.Tensor, num_prompts: int, arguments: dict) -> dict:
    if arguments.get("relative_position_embeddings") is None:
        return {}
    assert embed_positions is not None  # the row names it
    return {"relative_position_embeddings": embed_positions(tokens)}


def _made_for_prompts_too(
    source: Optional[nn.Module], tokens: torch.Tensor, num_prompts: int, arguments: dict
) -> dict:
    assert source is not None  # the row names it
    return {"position_bias": source(tokens)}


def _rotated_in_front(source: Optional[nn.Module], tokens: torch.Tensor, num_prompts: int, arguments: dict) -> dict:
    assert source is not None  # the row names it
    places = torch.arange(-num_prompts, 0, device=tokens.device)[None]
    grown = (
        torch.cat([new.expand(*old.shape[:-2], -1, -1), old], dim=-2)
        for new, old in zip(source(tokens, places), arguments["position_embeddings"])
    )
    return {"position_embeddings": tuple(grown)}


def _encoded_around(source: Optional[nn.Module], tokens: torch.Tensor, num_prompts: int, arguments: dict) -> dict:
    assert source is not None  # the row names it
    made = source(tokens)
    # The distances between tokens are in the middle, as the model has them: it may have dropped some out.
    parts = (made[:, :num_prompts], arguments["position_embeddings"], made[:, -num_prompts:])
    return {"position_embeddings": torch.cat(parts, dim=1)}


def _left_to_attention(source: Optional[nn.Module], tokens: torch.Tensor, num_prompts: int, arguments: dict) -> dict:
    return {"relative_pos": None}


def _grown_bias(first_attention: Any, tokens: torch.Tensor, num_prompts: int, arguments: dict) -> dict:
    bias = arguments.get("position_bias")
    if bias is None:
        return {}  # the first layer makes it, for the prompts as well
    length = bias.shape[-1] + num_prompts
    to_prompts = wavlm_position_bias(first_attention, length, num_prompts)[:, num_prompts:].to(bias.dtype)
    grown = torch.cat([to_prompts.repeat(tokens.shape[0], 1, 1), bias], dim=2)
    # What the prompts themselves attend to is thrown away, so their rows may hold anything.
    return {"position_bias": nn.functional.pad(grown, (0, 0, num_prompts, 0))}


def _cropped_bias(output: tuple, num_prompts: int) -> tuple:
    states, weights, bias, *rest = output
    return (states, weights, bias[:, num_prompts:, num_prompts:], *rest)


# wav2vec2-conformer, wav2vec2-bert, Seamless: embeddings of relative positions, or rotations, made once for all layers.
CONFORMER_POSITIONS = PositionRule(_made_again, source="encoder.embed_positions")
# SpeechT5: embeddings of the distances between all tokens, `(tokens, tokens, head_dim)`.
SPEECHT5_POSITIONS = PositionRule(_made_for_prompts_too, source="wrapped_encoder.embed_positions")
# Moonshine, LASR, Nemotron's diarization: cosines and sines, `(batch or 1, tokens, head_dim)`.
ROTARY_POSITIONS = PositionRule(_rotated_in_front, source="rotary_emb")
# Parakeet: encodings of the distances from one end of the tokens to the other, `(batch, 2 tokens - 1, d)`.
ENCODED_POSITIONS = PositionRule(_encoded_around, source="encode_positions")
# SEW-D: attention works the positions out for itself where it is given none.
DISENTANGLED_POSITIONS = PositionRule(_left_to_attention)
# WavLM: the first layer's attention makes a bias, `(batch * heads, tokens, tokens)`, that every layer hands on.
BIAS_POSITIONS = PositionRule(
    _grown_bias, _cropped_bias, source="encoder.layers.0.attention", handed_on="position_bias"
)
