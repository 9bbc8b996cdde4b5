"""Which of a model's two stacks of layers, encoder and decoder, an adapter is put on, and what cannot go into a decoder."""

from __future__ import annotations

from ..backbones.spec import Backbone
from ..config import EncoderAdapterConfig
from ..modules.adapter_module import reads_neighbors
from ..utils.validation import require
from .adapter_parts import ADAPTERS, AdapterParts
from .attention import takes_extra_tokens


def adapted_stacks(config: EncoderAdapterConfig, backbone: Backbone) -> list[Backbone]:
    """Return the places of the encoder, the decoder or both, as `config.stack` says.

    Raises:
        ValueError: if it asks for a decoder that the model lacks.
    """
    if config.stack == "encoder":
        return [backbone]
    rule = f"'encoder' on this model of type {backbone.model_type}, which has no decoder that adapters can be put on"
    require(backbone.decoder is not None, "stack", rule, config.stack)
    assert backbone.decoder is not None
    return [backbone, backbone.decoder] if config.stack == "both" else [backbone.decoder]


def stack_of(layer_name: str, backbone: Backbone) -> Backbone:
    """Return the places of the encoder or the decoder, whichever has the layer of this path."""
    decoder = backbone.decoder
    return decoder if decoder is not None and layer_name in decoder.layer_names else backbone


def names_of_layers(config: EncoderAdapterConfig, backbone: Backbone) -> list[str]:
    """Return the paths of the layers that `config` selects, in both stacks.

    Raises:
        ValueError: if it asks for a decoder or layers that the model lacks.
    """
    return [
        stack.layer_names[index]
        for stack in adapted_stacks(config, backbone)
        for index in config.selected_layers(len(stack.layer_names))
    ]


def check_parts(config: EncoderAdapterConfig, parts: AdapterParts, stack: Backbone) -> None:
    """Raise ValueError if these parts would be wrong in these layers.

    In a decoder a token must not depend on later ones, and layers run on the new tokens alone where earlier ones are cached.
    """
    if parts.prompt is not None:
        rule = (
            f"of a method without prompts on {stack.model_type}, whose attention reads blocks of a fixed number of tokens, which "
            "prompts would move from one block to the next"
        )
        require(not stack.spec.block_attention, "config", rule, type(config).__name__)
    if not stack.is_decoder:
        return
    adapters = [getattr(parts, name) for name in ADAPTERS if getattr(parts, name) is not None]
    rule = (
        "'encoder' for adapters that mix tokens, as convolutions do: in a decoder they would read tokens that come later, and "
        "miss those in the key/value cache"
    )
    require(not any(map(reads_neighbors, adapters)), "stack", rule, config.stack)
    rule = (
        f"'encoder' for prompts on {stack.model_type}, whose attention does not take them as keys and values alone: in front "
        "of the tokens they would stay in the key/value cache"
    )
    can_attend = takes_extra_tokens(stack.first_layer.attention, stack.spec)
    require(parts.prompt is None or can_attend, "stack", rule, config.stack)
