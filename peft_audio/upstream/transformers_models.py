"""Attributes and methods of transformers' models that are not documented.

Relied upon: `_is_hf_initialized`, which `from_pretrained` puts on the parameters that it loads; `_init_weights`, which
every `PreTrainedModel` has; `_get_feature_vector_attention_mask` and
`_get_feat_extract_output_lengths` of the types with a convolutional feature encoder;
`_attn_implementation` of a configuration; `gradient_checkpointing` of a layer, which before transformers 5.23 acts in a
`__call__` of the layer's own; `_freeze_parameters` of feature encoders; of WavLM's attention, `compute_bias` and
`rel_attn_embed`; of Whisper's module, `sinusoids`; and `create_bidirectional_mask`, by which encoders make attention's
masks.
"""

from __future__ import annotations

import math
from typing import Any, Optional

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask

from .torch_modules import install_stand_in, remove_stand_in


IS_LOADED = "_is_hf_initialized"  # on a parameter that was in a checkpoint


def is_class_of_transformers(model: nn.Module) -> bool:
    """Whether a model is of a class that transformers defines, so that its forward is the one that is known."""
    return type(model).__module__.startswith("transformers.models.")


def was_loaded(model: nn.Module) -> bool:
    """Whether `from_pretrained` made the model, so that it is known which parameters were in a checkpoint."""
    return any(hasattr(parameter, IS_LOADED) for parameter in model.parameters())


def new_parameters(model: nn.Module) -> list[str]:
    """Return the names of the parameters that `from_pretrained` found in no checkpoint; none for a model made otherwise."""
    if not was_loaded(model):
        return []
    return [name for name, parameter in model.named_parameters() if not hasattr(parameter, IS_LOADED)]


def replaces(parameter: nn.Parameter, old: nn.Parameter) -> nn.Parameter:
    """Return a parameter, made of another one, marked as that is."""
    if hasattr(old, IS_LOADED):
        setattr(parameter, IS_LOADED, True)
    return parameter


def initialize_weights(model: Any, module: nn.Module) -> None:
    """Give `module` new weights, drawn as `model` draws those of its own modules."""
    module.apply(model._init_weights)


def initializer_std(config: Any) -> float:
    """Return the standard deviation of new weights: `initializer_range`, which Whisper's configuration calls `init_std`."""
    return getattr(config, "initializer_range", None) or getattr(config, "init_std", None) or 0.02


def frame_mask(model: Any, num_frames: int, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return which frames of the feature encoder are no padding.

    Args:
        model: a classifier with a convolutional feature encoder.
        num_frames: number of frames that the feature encoder makes of the input.
        attention_mask: `(batch, samples)`, 1 where a sample is no padding.

    Returns:
        `(batch, num_frames)`
    """
    return model._get_feature_vector_attention_mask(num_frames, attention_mask)


def frame_count(model: Any, length: int) -> float:
    """Return how many frames a model's encoder makes of an input; infinity where the model cannot tell.

    Args:
        model: a model with a convolutional feature encoder, or another one.
        length: of one clip's input, in samples or frames.
    """
    output_lengths = getattr(model, "_get_feat_extract_output_lengths", None)
    return math.inf if output_lengths is None else int(output_lengths(torch.tensor(length)))


def has_frame_mask(model: Any) -> bool:
    """Whether a model can tell which frames of its feature encoder are padding, see `frame_mask`."""
    return hasattr(model, "_get_feature_vector_attention_mask")


def attention_implementation(config: Any) -> Optional[str]:
    """Return the name of the attention function that a model with this configuration calls, such as "sdpa"."""
    return getattr(config, "_attn_implementation", None)


def is_checkpointed(module: nn.Module) -> bool:
    """Whether gradient checkpointing acts on the module's next call."""
    return bool(getattr(module, "gradient_checkpointing", False)) and module.training and torch.is_grad_enabled()


def is_checkpointed_outside(module: nn.Module) -> bool:
    """Whether gradient checkpointing acts on the module's next call, and would go around an installed `forward`."""
    return is_checkpointed(module) and type(module).__call__ is not nn.Module.__call__


def freeze_feature_encoder(feature_encoder: Any) -> None:
    """Freeze the convolutions of a wav2vec2-type model, and stop them from marking their input for a backward pass."""
    feature_encoder._freeze_parameters()


def wavlm_position_bias(attention: Any, num_queries: int, num_keys: int) -> torch.Tensor:
    """Return the bias `(heads, queries, keys)` that WavLM's first attention module makes for relative positions."""
    embedding = attention.rel_attn_embed
    # FSDP has sharded its parameters again since the layer ran.
    sharded: dict[str, Any] = {name: p for name, p in embedding.named_parameters() if hasattr(p, "full_tensor")}
    before = {name: install_stand_in(embedding, name, value.full_tensor()) for name, value in sharded.items()}
    try:
        return attention.compute_bias(num_queries, num_keys)
    finally:
        for name, value in before.items():
            remove_stand_in(embedding, name, value)


def whisper_positions(num_tokens: int, hidden_size: int) -> torch.Tensor:
    """Return the sinusoidal positions of Whisper's encoder, `(num_tokens, hidden_size)`, in float32."""
    from transformers.models.whisper.modeling_whisper import (
        sinusoids,
    )  # only who resizes a Whisper waits for its import

    return sinusoids(num_tokens, hidden_size)


def encoder_mask(config: Any, hidden_states: torch.Tensor, is_real: torch.Tensor) -> Any:
    """Return a mask for an encoder's attention, in the form that its implementation takes.

    Args:
        config: the encoder's configuration.
        hidden_states: `(batch, tokens, d)`.
        is_real: `(batch, tokens)`, False for padding.
    """
    return create_bidirectional_mask(config=config, inputs_embeds=hidden_states, attention_mask=is_real)
