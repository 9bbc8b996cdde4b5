"""How an architecture is described: the places that adapters need, and a model with its places found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional, Union

from torch import nn

from .relative_positions import PositionRule


Paths = Union[str, tuple[str, ...]]


@dataclass(frozen=True)
class EncoderSpec:
    """The places of one architecture. A path may be a tuple of candidates, the first that exists is taken.

    Args:
        layers: the `ModuleList` of encoder layers, from the model without its head.
        attention: the self-attention module, from an encoder layer. Its first argument is the tokens.
        feed_forward_norm: the norm directly before the feed-forward block, from an encoder layer. Its input is the
            residual stream B after attention, its output LN(B).
        feed_forward: the module whose output is the feed-forward block's, from an encoder layer.
        attention_norm: the norm before attention, from an encoder layer; None in post-norm layers.
        attention_output: the module whose output is the attention block's, from an encoder layer; None where that is
            `attention` itself.
        head: the modules of the classification head, from the model; those that a model lacks are left out.
        layer_weights: the parameter that weighs the hidden states, from the model, where the type has one.
        frame_projection: the head's module that sees every frame before mean pooling, where the type has one.
        front_end: the feature encoder in front of the transformer, from the model without its head, where there is one
            that can be frozen with `_freeze_parameters()`.
        patch_projection: the convolution that cuts the input into patches, from the model without its head: its output
            `(batch, d, rows, columns)` is the grid of the last tokens. None: the tokens are one row of time.
        read_tokens: number of tokens, the first ones, that the head reads; None for all.
        positions: how positions that attention is told grow with prompts, where it is told any.
        input: the module that the model's input enters, from the model without its head; None: no input prompts.
        input_shape: from the model's configuration, the shape of one input without the batch, None for a length that
            varies: `(length,)`, `(rows, columns)` or `(channels, rows, columns)`.
        settings: names of fields of the model's configuration that an adapter's checkpoint brings back on loading.
    """

    layers: Paths
    attention: Paths
    feed_forward_norm: Paths
    feed_forward: Paths
    attention_norm: Optional[Paths] = None
    attention_output: Optional[Paths] = None
    head: tuple[str, ...] = ("classifier",)
    layer_weights: Optional[str] = None
    frame_projection: Optional[str] = None
    front_end: Optional[Paths] = None
    patch_projection: Optional[Paths] = None
    read_tokens: Optional[int] = None
    positions: Optional[PositionRule] = None
    input: Optional[Paths] = None
    input_shape: Callable[[Any], tuple[Optional[int], ...]] = lambda config: (None,)
    settings: tuple[str, ...] = ()


class LayerModules(NamedTuple):
    """The modules of one encoder layer that adapters attach to."""

    attention: nn.Module
    attention_norm: Optional[nn.Module]
    attention_output: nn.Module
    feed_forward_norm: nn.Module
    feed_forward: nn.Module


@dataclass(frozen=True)
class Backbone:
    """A model with its places found.

    Attributes:
        layer_names: the encoder layers' paths.
        hidden_size: width d of the tokens.
        patch_size: where the model has one.
        head: its head modules' paths.
        input_shape: shape of one input, see `EncoderSpec`.
        trunk: the model without its head.
        first_layer: the modules of the first encoder layer.
        front_end, patch_projection, position_source: modules, where the architecture has them.
        input_name: path of the module that the input enters, None where the table names none.
    """

    model_type: str
    spec: EncoderSpec
    layer_names: tuple[str, ...]
    hidden_size: int
    patch_size: Optional[int]
    head: tuple[str, ...]
    input_shape: tuple[Optional[int], ...]
    input_name: Optional[str]
    trunk: nn.Module = field(repr=False)
    first_layer: LayerModules = field(repr=False)
    front_end: Optional[nn.Module] = field(repr=False, default=None)
    patch_projection: Optional[nn.Module] = field(repr=False, default=None)
    position_source: Optional[nn.Module] = field(repr=False, default=None)
