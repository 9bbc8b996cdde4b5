"""The base-model settings that an adapter's checkpoint carries: labels, input length and strides, kind of head.

A base model that is loaded again comes with its own. Then the adapter's head and the model's positions would differ in
shape from those in training. So the adapter's configuration keeps the settings in its field `base_settings`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..ast.resize import RESIZES
from ..backbones.spec import Backbone, EncoderSpec
from ..config import normal_labels, normal_settings
from ..heads.mean_token_pooling import TOKEN_POOLING, has_mean_token_pooling, is_ast
from ..heads.statistics_pooling import has_statistics_pooling
from ..upstream.auto_classes import auto_class_of
from ..upstream.peft_state_dict import may_sizes_differ
from ..whisper.padding import PADDING_MASK, has_padding_mask, is_whisper_classifier


LABELS = "id2label"
POOLING = "statistics_pooling"
MODEL_TYPE = "model_type"
PROBLEM_TYPE = "problem_type"
DTYPE = "dtype"  # of the base model's weights in training
AUTO_CLASS = "auto_class"  # of transformers, which the base model is of
HEAD = "head"  # fields of the model's configuration that say how its head is built
DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32", "float64")}


def read_settings(model: nn.Module, spec: EncoderSpec, with_labels: bool = True) -> dict[str, Any]:
    """Return the base-model settings of `model`, in values that JSON keeps.

    Args:
        model: the base model.
        spec: the description of its architecture.
        with_labels: read the labels too.

    Raises:
        ValueError: if the model's configuration asks for a pooling that the model does not have, or has labels or sizes
            that no model has.
    """
    config: Any = model.config
    settings: dict[str, Any] = {MODEL_TYPE: config.model_type}
    dtype = str(getattr(model, DTYPE, "")).removeprefix("torch.")
    if dtype in DTYPES:
        settings[DTYPE] = dtype
    settings |= {name: _as_in_json(getattr(config, name)) for name in spec.settings}
    if spec.feature_encoder is not None or has_statistics_pooling(model):
        settings[POOLING] = has_statistics_pooling(model)
    if is_ast(model):
        settings[TOKEN_POOLING] = has_mean_token_pooling(model)
    if is_whisper_classifier(model):
        settings[PADDING_MASK] = has_padding_mask(model)
    if getattr(config, RESIZES, None):
        settings[RESIZES] = getattr(config, RESIZES)
    auto_class, head = auto_class_of(type(model).__name__), _head_settings(model, spec)
    settings |= {AUTO_CLASS: auto_class} if auto_class else {}
    settings |= {HEAD: head} if head else {}
    if with_labels and getattr(config, LABELS, None):
        settings |= {LABELS: getattr(config, LABELS), PROBLEM_TYPE: getattr(config, PROBLEM_TYPE, None)}
    return normal_settings(settings, type(config).__name__) or {}


def _head_settings(model: Any, spec: EncoderSpec) -> dict[str, Any]:
    places = (model, getattr(model, "base_model", model))
    present = [
        fields
        for name, fields in spec.head_settings
        if any(getattr(place, name, None) is not None for place in places)
    ]
    return {
        field: _as_in_json(getattr(model.config, field))
        for fields in present
        for field in fields
        if hasattr(model.config, field)
    }


def _as_in_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def dtype_of(settings: dict[str, Any]) -> dict[str, torch.dtype]:
    """Return the base model's dtype in training as an argument of `from_pretrained`; empty if the settings have none."""
    return {DTYPE: DTYPES[settings[DTYPE]]} if settings.get(DTYPE) in DTYPES else {}


def labels_of(settings: dict[str, Any]) -> dict[int, str]:
    """Return the label names by index; empty if the settings have none."""
    labels = settings.get(LABELS) or {}
    return {int(index): labels[index] for index in sorted(labels, key=int)}


def set_labels(config: Any, settings: dict[str, Any]) -> None:
    """Give a model's configuration the label names and the problem type of an adapter's base-model settings."""
    labels = labels_of(settings)
    if labels:
        config.id2label = labels
        config.label2id = {label: index for index, label in labels.items()}
        config.problem_type = settings.get(PROBLEM_TYPE)


def rename_labels(config: Any, names: dict[str, Any]) -> None:
    """Give a model's configuration the `id2label`, the `label2id` or both of `names`; each gives the other."""
    if LABELS in names:
        labels = labels_of({LABELS: normal_labels(names[LABELS], "from_pretrained")})
    elif names:
        labels = {index: label for label, index in names["label2id"].items()}
    else:
        return
    config.id2label, config.label2id = labels, {label: index for index, label in labels.items()}


def check_settings(settings: dict[str, Any], model: nn.Module, backbone: Backbone) -> None:
    """Check that the model is set up as the adapter's base model was in training.

    Args:
        settings: the adapter's base-model settings.
        model: the model that the adapter is about to be put on.
        backbone: its places for adapters.

    Raises:
        ValueError: if model type, input length, strides, kind of head or number of labels differ.
    """
    present = read_settings(model, backbone.spec)
    if settings.get(MODEL_TYPE) not in (None, backbone.model_type):
        raise ValueError(
            f"The adapter was trained on a model of type {settings[MODEL_TYPE]!r}, but this {type(model).__name__} is of "
            f"type {backbone.model_type!r}. Load the base model that it was trained on."
        )
    # Checkpoints of earlier versions lack what was added to a row since.
    of_row = [name for name in backbone.spec.settings if name in settings]
    names = (*of_row, POOLING, TOKEN_POOLING, PADDING_MASK, RESIZES)
    # Absent and False mean the same: no such head, or never resized.
    different = {name for name in names if (settings.get(name) or None) != (present.get(name) or None)}
    if not may_sizes_differ():
        head, own = settings.get(HEAD) or {}, present.get(HEAD) or {}
        different |= {name for name in head if name in own and head[name] != own[name]}
        settings, present = {**settings, **head}, {**present, **own}
    if different:
        raise ValueError(
            f"The adapter was trained with {_join(settings, different)}, but this {type(model).__name__} has "
            f"{_join(present, different)}. The auto classes, such as AutoPeftModelForAudioClassification, set the base model "
            "up for the adapter; by hand, call resize_ast, resize_whisper, use_statistics_pooling, use_mean_token_pooling or "
            "use_padding_mask first."
        )
    _check_num_labels(settings, present, model, backbone)


def with_labels_that_fit(settings: dict[str, Any], model: nn.Module, backbone: Backbone) -> dict[str, Any]:
    """Return the settings, without their labels if these are not as many as the model's."""
    if len(labels_of(settings)) == len(labels_of(read_settings(model, backbone.spec))):
        return settings
    return {name: value for name, value in settings.items() if name not in (LABELS, PROBLEM_TYPE)}


def _check_num_labels(settings: dict[str, Any], present: dict[str, Any], model: nn.Module, backbone: Backbone) -> None:
    num_labels, model_labels = len(labels_of(settings)), len(labels_of(present))
    if backbone.head and num_labels and num_labels != model_labels:
        raise ValueError(
            f"The adapter was trained with num_labels={num_labels}, but this {type(model).__name__} has "
            f"num_labels={model_labels}. Load the base model with num_labels={num_labels} and "
            "ignore_mismatched_sizes=True, or use AutoPeftModelForAudioClassification.from_pretrained."
        )


def _join(settings: dict[str, Any], names: set[str]) -> str:
    return ", ".join(f"{name}={settings.get(name)!r}" for name in sorted(names))
