"""What attention modules are told about positions, when prompts stand in front of their tokens.

Where a model adds positions to its input, attention is told nothing. The models here hand relative positions to every
layer, made for the tokens alone: prompts take the positions in front of the first token, as if they were tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
from torch import nn

from ..upstream.hooks import owners_of_hooks, remove_hooks


@dataclass(frozen=True)
class PositionRule:
    """How one architecture's positions grow with the prompts.

    Args:
        grow: `(source, tokens, num_prompts, arguments) -> arguments to replace`, with the module at `source`, what
            attention will see (prompts and tokens, `(batch, prompts + tokens, d)`), and attention's arguments by name.
        crop: `(output, num_prompts) -> output` for what attention returns beside the tokens.
        source: path of the module that makes the positions, from the model without its head.
        handed_on: the argument of encoder layers that the layer before returned beside the tokens.
    """

    grow: Callable[[Optional[nn.Module], torch.Tensor, int, dict[str, Any]], dict[str, Any]]
    crop: Optional[Callable[[tuple, int], tuple]] = None
    source: Optional[Union[str, tuple[str, ...]]] = None
    handed_on: Optional[str] = None


class Detach:
    """Two hooks of an attention module that cut the positions that layers hand on out of the graph.

    Reentrant checkpointing marks all that a layer returns as needing a gradient, also a tensor that the layer was given
    by keyword. Run again, the layer then reaches into the graph that it is being run for, and the backward pass never
    ends. Frozen positions have no gradient to lose.
    """

    def __init__(self, argument: str) -> None:
        self.argument = argument

    def enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        positions = kwargs.get(self.argument)
        return args, kwargs if positions is None else {**kwargs, self.argument: positions.detach()}

    def leave(self, module: nn.Module, args: tuple, output: tuple) -> tuple:
        states, weights, positions, *rest = output
        return (states, weights, positions.detach(), *rest)


def detach_positions(
    attentions: Iterable[nn.Module], rule: Optional[PositionRule], source: Optional[nn.Module]
) -> None:
    """Put `Detach` on the attention modules of layers that hand frozen positions on, unless they have it."""
    if rule is None or rule.handed_on is None or any(p.requires_grad for p in source.parameters()):
        return
    for attention in attentions:
        if not any(isinstance(owner, Detach) for owner in owners_of_hooks(attention)):
            detach = Detach(rule.handed_on)
            attention.register_forward_pre_hook(detach.enter, with_kwargs=True)
            attention.register_forward_hook(detach.leave)


def attach_positions(model: nn.Module) -> None:
    """Undo `detach_positions`."""
    remove_hooks(model, Detach)


def _made_again(embed_positions: nn.Module, tokens: torch.Tensor, num_prompts: int, arguments: dict) -> dict:
    if arguments.get("relative_position_embeddings") is None:
        return {}
    return {"relative_position_embeddings": embed_positions(tokens)}


def _left_to_attention(source: None, tokens: torch.Tensor, num_prompts: int, arguments: dict) -> dict:
    return {"relative_pos": None}


@contextmanager
def _gathered(module: nn.Module) -> Iterator[None]:
    """Put the whole parameters into a module that FSDP has sharded again since its layer ran."""
    sharded = {name: value for name, value in module._parameters.items() if hasattr(value, "full_tensor")}
    module._parameters.update({name: value.full_tensor() for name, value in sharded.items()})
    try:
        yield
    finally:
        module._parameters.update(sharded)


def _grown_bias(first_attention: nn.Module, tokens: torch.Tensor, num_prompts: int, arguments: dict) -> dict:
    bias = arguments.get("position_bias")
    if bias is None:
        return {}  # the first layer makes it, for the prompts as well
    length = bias.shape[-1] + num_prompts
    with _gathered(first_attention.rel_attn_embed):
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
BIAS_POSITIONS = PositionRule(
    _grown_bias, _cropped_bias, source="encoder.layers.0.attention", handed_on="position_bias"
)
