"""What an adapter's checkpoint remembers of the model it was trained on, beside the weights.

Labels, the input's length and strides, the kind of head: a base model that is loaded again has its own, and the
adapter would meet heads and positions of other shapes. The adapter's configuration carries them (`base_settings`).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..ast.resize import RESIZES
from ..backbones.spec import Backbone, EncoderSpec
from ..heads.mean_token_pooling import TOKEN_POOLING, has_mean_token_pooling, is_ast
from ..heads.statistics_pooling import has_statistics_pooling


LABELS = "id2label"
POOLING = "statistics_pooling"
MODEL_TYPE = "model_type"
PROBLEM_TYPE = "problem_type"
LABELS_OF_MODEL = "_labels_of_model"  # on a configuration in memory: the model's labels when it was looked at last


def read_settings(model: nn.Module, spec: EncoderSpec) -> dict[str, Any]:
    """Return the settings of `model` in a form that JSON keeps.

    Raises:
        ValueError: if the model does not pool as its configuration says.
    """
    config = model.config
    settings: dict[str, Any] = {MODEL_TYPE: config.model_type}
    settings |= {name: _plain(getattr(config, name)) for name in spec.settings}
    if spec.feature_encoder is not None or has_statistics_pooling(model):
        settings[POOLING] = has_statistics_pooling(model)
    if is_ast(model):
        settings[TOKEN_POOLING] = has_mean_token_pooling(model)
    if getattr(config, RESIZES, None):
        settings[RESIZES] = getattr(config, RESIZES)
    if getattr(config, LABELS, None):
        settings[LABELS] = {str(index): label for index, label in config.id2label.items()}
        settings[PROBLEM_TYPE] = getattr(config, PROBLEM_TYPE, None)
    return settings


def remember_settings(config: Any, model: nn.Module, spec: EncoderSpec) -> None:
    """Keep the settings of `model` in the configuration of an adapter on it.

    Adapters with other labels may be on the same model. So an adapter that came with labels keeps those, as long as the
    model's stay as they were then.
    """
    settings = read_settings(model, spec)
    own, of_model = config.base_settings or {}, settings.get(LABELS)
    if own.get(LABELS) and getattr(config, LABELS_OF_MODEL, of_model) == of_model:
        settings |= {name: own[name] for name in (LABELS, PROBLEM_TYPE) if name in own}
    config.base_settings = settings
    setattr(config, LABELS_OF_MODEL, of_model)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # what JSON gives back


def labels_of(settings: dict[str, Any]) -> dict[int, str]:
    """Return the label names by index, empty where the settings have none."""
    return {int(index): label for index, label in (settings.get(LABELS) or {}).items()}


def set_labels(config: Any, settings: dict[str, Any]) -> None:
    """Give a model configuration the label names and the problem type of `settings`."""
    labels = labels_of(settings)
    if labels:
        config.id2label = labels
        config.label2id = {label: index for index, label in labels.items()}
        config.problem_type = settings.get(PROBLEM_TYPE)


def has_generic_labels(config: Any) -> bool:
    """Whether the labels are those that transformers makes up."""
    return all(label == f"LABEL_{index}" for index, label in (getattr(config, LABELS, None) or {}).items())


def check_settings(settings: dict[str, Any], model: nn.Module, backbone: Backbone) -> None:
    """Raise ValueError unless the adapter's settings fit the model that it is being put on."""
    present = read_settings(model, backbone.spec)
    if settings.get(MODEL_TYPE) not in (None, backbone.model_type):
        raise ValueError(
            f"The adapter was trained on a model of type {settings[MODEL_TYPE]!r}, but this {type(model).__name__} is of "
            f"type {backbone.model_type!r}. Load the base model that it was trained on."
        )
    names = (*backbone.spec.settings, POOLING, TOKEN_POOLING, RESIZES)
    # Absent and False are the same: "no such head", "never resized".
    different = {name for name in names if (settings.get(name) or None) != (present.get(name) or None)}
    if different:
        raise ValueError(
            f"The adapter was trained with {_join(settings, different)}, but this {type(model).__name__} has "
            f"{_join(present, different)}. AutoPeftModelForAudioClassification.from_pretrained brings the base model "
            "to what the adapter needs; by hand, use resize_ast, use_statistics_pooling or use_mean_token_pooling first."
        )
    num_labels, model_labels = len(labels_of(settings)), len(labels_of(present))
    if backbone.head and num_labels and num_labels != model_labels:
        raise ValueError(
            f"The adapter was trained with num_labels={num_labels}, but this {type(model).__name__} has "
            f"num_labels={model_labels}. Load the base model with num_labels={num_labels} and "
            "ignore_mismatched_sizes=True, or use AutoPeftModelForAudioClassification.from_pretrained."
        )


def _join(settings: dict[str, Any], names: set[str]) -> str:
    return ", ".join(f"{name}={settings.get(name)!r}" for name in sorted(names))
