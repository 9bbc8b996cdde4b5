"""Finding the parts of a model by the row of its type, and rows that users register."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import torch
from torch import nn

from .rows import BACKBONES, UNSUPPORTED, SpecOrRule
from .spec import Backbone, EncoderSpec, LayerModules, Paths


# Model types that users registered, and those rows of them that were found to hold.
_REGISTERED: set[str] = set()
_CHECKED: set[tuple[str, EncoderSpec]] = set()


def supported_backbones() -> list[str]:
    """Return the model types (`model.config.model_type`) that adapters can be put on, sorted."""
    return sorted(BACKBONES)


def register_backbone(model_type: str, spec: SpecOrRule) -> None:
    """Add a model type to the table, or replace its row.

    What the row claims is checked the first time that adapters are put on a model of this type.

    Args:
        model_type: the value of `model.config.model_type`.
        spec: an `EncoderSpec`, or a function from the model's configuration to one, for a type with several layouts.

    Raises:
        ValueError: if `model_type` is no string or `spec` is neither.

    Examples:
        >>> from peft_audio import EncoderSpec, register_backbone, supported_backbones
        >>> register_backbone(
        ...     "my-type",  # the model's config.model_type
        ...     EncoderSpec(
        ...         layers="encoder.blocks",  # the ModuleList, from the model without its head
        ...         attention="attention",  # these four from an encoder layer
        ...         attention_norm="norm1",
        ...         feed_forward_norm="norm2",
        ...         feed_forward="mlp",
        ...     ),
        ... )
        >>> "my-type" in supported_backbones()
        True
    """
    if not isinstance(model_type, str) or not model_type:
        raise ValueError(f"`model_type` must be a non-empty string, got {model_type!r}.")
    if not (isinstance(spec, EncoderSpec) or callable(spec)):
        raise ValueError(f"`spec` must be an EncoderSpec or a function that returns one, got {spec!r}.")
    BACKBONES[model_type] = spec
    _REGISTERED.add(model_type)


def is_to_check(backbone: Backbone) -> bool:
    """Whether the row of this model is a user's and was not checked yet."""
    return backbone.model_type in _REGISTERED and not was_checked(backbone)


def was_checked(backbone: Backbone) -> bool:
    """Whether the row of this model is a user's and was found to hold."""
    return (backbone.model_type, backbone.spec) in _CHECKED


def remember_checked(backbone: Backbone) -> None:
    """Note that the row of this model holds."""
    _CHECKED.add((backbone.model_type, backbone.spec))


def resolve(model: Any) -> Backbone:
    """Find the places of `model`, with or without adapters on it.

    Raises:
        ValueError: if the model type is not in the table, or a place of its row does not exist in this model.
    """
    model_type, row = _row(model)
    spec = row if isinstance(row, EncoderSpec) else row(model.config)
    encoder = _encoder(model, spec)
    layers: Any = _find(encoder, spec.layers, model_type, "layers")
    names = {id(module): name for name, module in model.named_modules()}
    first = locate(layers[0], spec, model_type)
    input_module = _find_optional(encoder, spec.input, model_type, "input")
    source = None if spec.positions is None else spec.positions.source
    feature_encoder = _find_optional(encoder, spec.feature_encoder, model_type, "feature_encoder")
    backbone = Backbone(
        model_type=model_type,
        spec=spec,
        layer_names=tuple(names[id(layer)] for layer in layers),
        hidden_size=_shape(first.feed_forward_norm)[-1],
        patch_size=getattr(model.config, "patch_size", None),
        head=_head(model, spec.head, feature_encoder),
        frame_adapter=None if spec.frame_adapter is None else names.get(id(_get(encoder, spec.frame_adapter))),
        input_shape=tuple(spec.input_shape(model.config)),
        input_name=None if input_module is None else names[id(input_module)],
        encoder=encoder,
        first_layer=first,
        feature_encoder=feature_encoder,
        patch_projection=_find_optional(encoder, spec.patch_projection, model_type, "patch_projection"),
        position_source=_find_optional(encoder, source, model_type, "positions.source"),
    )
    return replace(backbone, decoder=_decoder(backbone, getattr(model, "base_model", model), names))


def _row(model: Any) -> tuple[str, SpecOrRule]:
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type in BACKBONES:
        return model_type, BACKBONES[model_type]
    name, supported = type(model).__name__, f"Supported: {', '.join(supported_backbones())}."
    if model_type in UNSUPPORTED:
        raise ValueError(
            f"{name} has `config.model_type` {model_type!r}, which adapters cannot be put on: {UNSUPPORTED[model_type]}. "
            f"{supported}"
        )
    raise ValueError(
        f"{name} has `config.model_type` {model_type!r}, which is not a supported backbone. {supported} For another "
        "architecture, say where its parts are with "
        'peft_audio.register_backbone("my-type", EncoderSpec(layers=..., attention=..., ...)).'
    )


def _encoder(model: Any, spec: EncoderSpec) -> Any:
    """Return the module that paths start from: the encoder within the model, the model without its head, or the model."""
    base_model = getattr(model, "base_model", model)
    # What transformers calls the base model of an encoder alone may be a part of it.
    starts = (_first_of(base_model, spec.encoder or ()), base_model, model)
    found = (start for start in starts if start is not None and _first_of(start, spec.layers) is not None)
    return next(found, base_model)


def _decoder(backbone: Backbone, base_model: nn.Module, names: dict[int, str]) -> Optional[Backbone]:
    """Return the places of the decoder, None for a model without one; `names` are the paths of the model's modules."""
    layers: Any = _first_of(base_model, backbone.spec.decoder_layers or ())
    if layers is None:
        return None
    first = locate(layers[0], backbone.spec, backbone.model_type)
    return replace(
        backbone,
        layer_names=tuple(names[id(layer)] for layer in layers),
        hidden_size=_shape(first.feed_forward_norm)[-1],
        first_layer=first,
        patch_projection=None,
        position_source=None,
        is_decoder=True,
    )


def locate(layer: Any, spec: EncoderSpec, model_type: str = "") -> LayerModules:
    """Find the modules of one encoder layer (of its base layer, if adapters wrap it already).

    Raises:
        ValueError: if one of them does not exist.
    """
    base_layer = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    attention = _find(base_layer, spec.attention, model_type, "attention")
    return LayerModules(
        attention=attention,
        attention_norm=_find_optional(base_layer, spec.attention_norm, model_type, "attention_norm"),
        attention_output=_find_optional(base_layer, spec.attention_output, model_type, "attention_output")
        or attention,
        feed_forward_norm=_find(base_layer, spec.feed_forward_norm, model_type, "feed_forward_norm"),
        feed_forward=_find(base_layer, spec.feed_forward, model_type, "feed_forward"),
    )


def _find(root: nn.Module, paths: Paths, model_type: str, place: str) -> nn.Module:
    module = _first_of(root, paths)
    if module is not None:
        return module
    candidates = _candidates(paths)
    raise ValueError(
        f"`{place}` of model type {model_type!r} was looked for at {', '.join(map(repr, candidates))} in "
        f"{type(root).__name__}, which has {', '.join(name for name, _ in root.named_children())}. If the layout "
        "of this model changed, register where its parts are now with peft_audio.register_backbone."
    )


def _first_of(root: nn.Module, paths: Paths) -> Optional[nn.Module]:
    """Return the module at the first of the paths that exists, None where none does."""
    found = (_get(root, path) for path in _candidates(paths))
    return next((module for module in found if module is not None), None)


def _candidates(paths: Paths) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else paths


def _shape(norm: nn.Module) -> torch.Size:
    # Under DeepSpeed ZeRO-3 a parameter is empty until it is needed.
    weight = next(norm.parameters())  # its scale, whatever it is called
    return getattr(weight, "ds_shape", weight.shape)


def _find_optional(root: nn.Module, paths: Optional[Paths], model_type: str, place: str) -> Optional[nn.Module]:
    return None if paths is None else _find(root, paths, model_type, place)


def _get(root: Any, path: str) -> Optional[nn.Module]:
    for name in path.split("."):
        if not hasattr(root, name) and hasattr(root, "get_base_layer"):
            root = root.get_base_layer()  # an encoder layer with adapters around it
        root = getattr(root, name, None)
        if root is None:
            return None
    return root


def _head(model: nn.Module, names: tuple[str, ...], feature_encoder: Optional[nn.Module]) -> tuple[str, ...]:
    """Return the paths of those modules of the head that the model has; a list of modules gives its items."""
    found = [(name, _get(model, name)) for name in names]
    # A bare encoder has a module by the name of an x-vector head's, its feature encoder.
    modules = [(name, module) for name, module in found if module is not None and module is not feature_encoder]
    paths = []
    for name, module in modules:
        items = [f"{name}.{index}" for index in range(len(module))] if isinstance(module, nn.ModuleList) else [name]
        paths += [path for path in items if any(True for _ in model.get_submodule(path).parameters())]
    return tuple(paths)
