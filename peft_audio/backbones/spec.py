"""How an architecture is described: the places that adapters need, and a model with its places found."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional, Union

import torch
from torch import nn

from .relative_positions import PositionRule


Paths = Union[str, tuple[str, ...]]


@dataclass(frozen=True)
class EncoderSpec:
    """The places of one architecture, and what may be relied upon there: a row of the table of backbones.

    A path may be a tuple of candidates; the first that exists is taken. "The encoder" is the model without its head, or the
    part of it that `encoder` names.
    What a row does not claim gets the slower way that is right for every architecture. The first time that adapters
    are put on a model of a registered type, the claims are checked on made-up inputs, and a row that does not hold is
    refused.

    Args:
        layers: the `ModuleList` of encoder layers, from the encoder.
        attention: the self-attention module, from an encoder layer. Its first argument is the tokens.
        feed_forward_norm: the norm directly before the feed-forward block, from an encoder layer. Its input is the
            residual stream B after attention, its output LN(B).
        feed_forward: the module whose output is the feed-forward block's, from an encoder layer.
        attention_norm: the norm before attention, from an encoder layer; None in post-norm layers.
        attention_output: the module whose output is the attention block's, from an encoder layer; None where that is
            `attention` itself.
        head: the modules of the head, from the model; those that a model lacks are left out. A `ModuleList` stands for
            its items.
        encoder: the encoder within a larger model, from the model without its head: an encoder-decoder, or a language model
            that hears. Where it is not there, the model is the encoder itself.
        decoder_layers: the `ModuleList` of decoder layers, from the model without its head, where adapters may be put on
            those as well.
            Their modules have the same paths as an encoder layer's; `attention` is causal. This claim is not checked.
        layer_weights: the parameter that weights the hidden states, from the model, where the type has one.
        head_settings: names of head modules (or of `frame_adapter`), each with the fields of the model's configuration
            that say how it is built; an adapter that brings the module remembers them.
        frame_adapter: convolutions behind the encoder layers, which some models get when they are loaded for a task
            (`add_adapter=True`), from the encoder. They train and are saved unless the checkpoint has them.
        frame_projection: the head's module that sees every frame before mean pooling, where the type has one.
        feature_encoder: the convolutions in front of the transformer, from the encoder, where there are some that can
            be frozen with `_freeze_parameters()`.
        patch_projection: the convolution that cuts the input into patches, from the encoder: its output
            `(batch, d, rows, columns)` is the grid of the last tokens. None: the tokens are one row of time.
        rows_are_time: whether a row of that grid is a step of time and a column a frequency, and not the other way round.
        read_tokens: number of tokens, the first ones, that the head reads; the last adapted layer then computes no
            others. None: the head reads all.
        positions: how relative positions grow with prompts, where attention gets them as an argument.
        block_attention: whether attention reads the tokens in blocks of a fixed number. Prompts would move the tokens from
            one block to the next, so they are refused.
        input: the module that the model's input enters, from the encoder; None: no input prompts.
        input_shape: from the model's configuration, the shape of one input without the batch, None for a length that
            varies: `(length,)`, `(rows, columns)` or `(channels, rows, columns)`.
        settings: names of fields of the model's configuration that an adapter's checkpoint brings back on loading.
        keys_and_values: the projections of attention to keys and values, from the attention module. Prompts then are
            keys and values only, which is faster. It takes an attention module that calls a function of transformers'
            `AttentionInterface`, and nothing between these projections and that function: no rotary embedding, no
            norm of keys, no padding of heads. None, or where a model has no such projections: prompts stand in front
            of the tokens that attention reads.
        batch_first: False for layers and attention that take `(tokens, batch, d)`, as in fairseq.
        padding_mask: the argument of attention that is True for padding, `(batch, tokens)`, as in fairseq. None: the
            argument `attention_mask` in one of transformers' forms.
        hides_padding: whether a padded clip with its attention mask gives what the clip gives alone. It is only
            checked: neither models nor adapters change with it.
        example_inputs: from the model's configuration and a number of clips, inputs for the check, by name. None: made
            from `input_shape`.
        front_end: former name of `feature_encoder`.
    """

    layers: Paths
    attention: Paths
    feed_forward_norm: Paths
    feed_forward: Paths
    attention_norm: Optional[Paths] = None
    attention_output: Optional[Paths] = None
    head: tuple[str, ...] = ("classifier",)
    encoder: Optional[Paths] = None
    decoder_layers: Optional[Paths] = None
    layer_weights: Optional[str] = None
    head_settings: tuple[tuple[str, tuple[str, ...]], ...] = ()
    frame_adapter: Optional[str] = None
    frame_projection: Optional[str] = None
    feature_encoder: Optional[Paths] = None
    patch_projection: Optional[Paths] = None
    rows_are_time: bool = False
    read_tokens: Optional[int] = None
    positions: Optional[PositionRule] = None
    block_attention: bool = False
    input: Optional[Paths] = None
    input_shape: Callable[[Any], tuple[Optional[int], ...]] = lambda config: (None,)
    settings: tuple[str, ...] = ()
    keys_and_values: Optional[tuple[str, str]] = None
    batch_first: bool = True
    padding_mask: Optional[str] = None
    hides_padding: bool = False
    example_inputs: Optional[Callable[[Any, int], Mapping[str, torch.Tensor]]] = None
    front_end: Optional[Paths] = None

    def __post_init__(self) -> None:
        if self.front_end is not None:
            warnings.warn("EncoderSpec(front_end=...) is now called feature_encoder=...", FutureWarning, stacklevel=3)
            object.__setattr__(self, "feature_encoder", self.feature_encoder or self.front_end)
            object.__setattr__(self, "front_end", None)


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
        layer_names: the encoder layers' paths; in that of a decoder, the decoder layers'.
        hidden_size: width d of the tokens.
        patch_size: where the model has one.
        head: its head modules' paths.
        frame_adapter: path of its convolutions behind the encoder layers, None where it has none.
        input_shape: shape of one input, see `EncoderSpec`.
        encoder: the model without its head, or the encoder within it.
        first_layer: the modules of the first encoder layer.
        feature_encoder, patch_projection, position_source: modules, where the architecture has them.
        input_name: path of the module that the input enters, None where the table names none.
        is_decoder: whether these are the places of a decoder.
        decoder: the places of the model's decoder, where it has one whose layers may get adapters.
    """

    model_type: str
    spec: EncoderSpec
    layer_names: tuple[str, ...]
    hidden_size: int
    patch_size: Optional[int]
    head: tuple[str, ...]
    frame_adapter: Optional[str]
    input_shape: tuple[Optional[int], ...]
    input_name: Optional[str]
    encoder: nn.Module = field(repr=False)
    first_layer: LayerModules = field(repr=False)
    feature_encoder: Optional[nn.Module] = field(repr=False, default=None)
    patch_projection: Optional[nn.Module] = field(repr=False, default=None)
    position_source: Optional[nn.Module] = field(repr=False, default=None)
    is_decoder: bool = False
    decoder: Optional[Backbone] = field(repr=False, default=None)
