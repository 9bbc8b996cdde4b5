"""Where each model type keeps its parts: the one table, and the only place that knows Hugging Face's module names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Optional, Union

import torch
from torch import nn


Paths = Union[str, tuple[str, ...]]


@dataclass(frozen=True)
class EncoderSpec:
    """The places of one architecture. A path may be a tuple of candidates, the first that exists is taken.

    Args:
        layers: the `ModuleList` of encoder layers, from the model without its head.
        attention: the self-attention module, from an encoder layer.
        feed_forward_norm: the norm directly before the feed-forward block, from an encoder layer. Its input is the
            residual stream B after attention, its output LN(B).
        feed_forward: the module whose output is the feed-forward block's, from an encoder layer.
        attention_norm: the norm before attention, from an encoder layer; None in post-norm layers.
        head: the modules of the classification head, from the model; those that a model lacks are left out.
        layer_weights: the parameter that weighs the hidden states, from the model, where the type has one.
        frame_projection: the head's module that sees every frame before mean pooling, where the type has one.
        front_end: the feature encoder in front of the transformer, from the model without its head, where there is one
            that can be frozen with `_freeze_parameters()`.
        settings: names of fields of the model's configuration that an adapter's checkpoint brings back on loading.
    """

    layers: Paths
    attention: Paths
    feed_forward_norm: Paths
    feed_forward: Paths
    attention_norm: Optional[Paths] = None
    head: tuple[str, ...] = ("classifier",)
    layer_weights: Optional[str] = None
    frame_projection: Optional[str] = None
    front_end: Optional[Paths] = None
    settings: tuple[str, ...] = ()


class LayerModules(NamedTuple):
    """The modules of one encoder layer that adapters attach to."""

    attention: nn.Module
    attention_norm: Optional[nn.Module]
    feed_forward_norm: nn.Module
    feed_forward: nn.Module


@dataclass(frozen=True)
class Backbone:
    """A model with its places found. `layer_names` are the encoder layers' paths, `head` its head modules' paths."""

    model_type: str
    spec: EncoderSpec
    layer_names: tuple[str, ...]
    hidden_size: int
    patch_size: Optional[int]
    head: tuple[str, ...]
    front_end: Optional[nn.Module] = field(repr=False, default=None)


SpecOrRule = Union[EncoderSpec, Callable[[Any], EncoderSpec]]

_AST = EncoderSpec(
    layers=("layers", "encoder.layer"),
    attention="attention",
    attention_norm="layernorm_before",
    feed_forward_norm="layernorm_after",
    feed_forward=("mlp", "output.dense"),
    settings=("max_length", "num_mel_bins", "time_stride", "frequency_stride"),
)

_WAV2VEC2 = EncoderSpec(
    layers="encoder.layers",
    attention="attention",
    feed_forward_norm="layer_norm",
    feed_forward="feed_forward",
    head=("projector", "classifier"),
    layer_weights="layer_weights",
    frame_projection="projector",
    front_end="feature_extractor",
    settings=("use_weighted_layer_sum",),
)

_WAV2VEC2_STABLE_LAYER_NORM = replace(_WAV2VEC2, attention_norm="layer_norm", feed_forward_norm="final_layer_norm")


def _wav2vec2(config: Any) -> EncoderSpec:
    return _WAV2VEC2_STABLE_LAYER_NORM if config.do_stable_layer_norm else _WAV2VEC2


BACKBONES: dict[str, SpecOrRule] = {
    "audio-spectrogram-transformer": _AST,
    "wav2vec2": _wav2vec2,
}


def supported_backbones() -> list[str]:
    """Return the model types (`model.config.model_type`) that adapters can be put on, sorted."""
    return sorted(BACKBONES)


def register_backbone(model_type: str, spec: SpecOrRule) -> None:
    """Add a model type to the table, or replace its row.

    Args:
        model_type: the value of `model.config.model_type`.
        spec: an `EncoderSpec`, or a function from the model's configuration to one, for a type with several layouts.

    Raises:
        ValueError: if `model_type` is no string or `spec` is neither.
    """
    if not isinstance(model_type, str) or not model_type:
        raise ValueError(f"`model_type` must be a non-empty string, got {model_type!r}.")
    if not (isinstance(spec, EncoderSpec) or callable(spec)):
        raise ValueError(f"`spec` must be an EncoderSpec or a function that returns one, got {spec!r}.")
    BACKBONES[model_type] = spec


def resolve(model: nn.Module) -> Backbone:
    """Find the places of `model`, with or without adapters on it.

    Raises:
        ValueError: if the model type is not in the table, or a place of its row does not exist in this model.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in BACKBONES:
        raise ValueError(
            f"{type(model).__name__} has `config.model_type` {model_type!r}, which is not a supported backbone. "
            f"Supported: {', '.join(supported_backbones())}. For another architecture, say where its parts are with "
            'peft_audio.register_backbone("my-type", EncoderSpec(layers=..., attention=..., ...)).'
        )
    row = BACKBONES[model_type]
    spec = row if isinstance(row, EncoderSpec) else row(model.config)
    trunk = getattr(model, "base_model", model)
    layers = _find(trunk, spec.layers, model_type, "layers")
    names = {id(module): name for name, module in model.named_modules()}
    first = locate(layers[0], spec, model_type)
    return Backbone(
        model_type=model_type,
        spec=spec,
        layer_names=tuple(names[id(layer)] for layer in layers),
        hidden_size=first.feed_forward_norm.weight.shape[-1],
        patch_size=getattr(model.config, "patch_size", None),
        head=tuple(name for name in spec.head if _has_parameters(model, name)),
        front_end=None if spec.front_end is None else _find(trunk, spec.front_end, model_type, "front_end"),
    )


def locate(layer: nn.Module, spec: EncoderSpec, model_type: str = "") -> LayerModules:
    """Find the modules of one encoder layer (of its base layer, if adapters wrap it already)."""
    base_layer = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    found = {
        place: None if getattr(spec, place) is None else _find(base_layer, getattr(spec, place), model_type, place)
        for place in LayerModules._fields
    }
    return LayerModules(**found)


def frame_mask(model: nn.Module, num_frames: int, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return which frames of the front end are no padding, `(batch, num_frames)`, from `(batch, samples)`."""
    return model._get_feature_vector_attention_mask(num_frames, attention_mask)


def _find(root: nn.Module, paths: Paths, model_type: str, place: str) -> nn.Module:
    candidates = (paths,) if isinstance(paths, str) else paths
    for path in candidates:
        module = _get(root, path)
        if module is not None:
            return module
    raise ValueError(
        f"`{place}` of model type {model_type!r} was looked for at {', '.join(map(repr, candidates))} in "
        f"{type(root).__name__}, which has {', '.join(name for name, _ in root.named_children())}. If the layout "
        "of this model changed, register where its parts are now with peft_audio.register_backbone."
    )


def _get(root: nn.Module, path: str) -> Optional[nn.Module]:
    for name in path.split("."):
        root = getattr(root, name, None)
        if root is None:
            return None
    return root


def _has_parameters(model: nn.Module, path: str) -> bool:
    module = _get(model, path)
    return module is not None and any(True for _ in module.parameters())
