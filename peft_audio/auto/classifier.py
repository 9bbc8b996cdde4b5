"""A pretrained model as a classifier of clips or of frames, for new labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    PreTrainedModel,
)

from ..ast.resize import resize_ast
from ..backbones.table import resolve, supported_backbones
from ..upstream.auto_classes import types_of_auto_class
from ..upstream.transformers_models import initializer_std
from ..whisper.resize import resize_whisper


def load_classifier(
    name: Union[str, os.PathLike],
    labels: Sequence[str],
    *,
    multi_label: bool = False,
    max_length: Optional[int] = None,
    max_seconds: Optional[float] = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a pretrained model as a classifier for these labels, with a new output layer.

    `from_pretrained(..., ignore_mismatched_sizes=True)` alone would keep an old one that has as many labels by chance.

    Args:
        name: folder or Hub id of the model.
        labels: their names, in the order of the model's outputs.
        multi_label: whether a clip can have several labels.
        max_length: frames of 10 ms that an AST is to take, see `resize_ast`; None for the model's own.
        max_seconds: seconds that a Whisper is to take, see `resize_whisper`; None for the model's own.
        **kwargs: for `AutoModelForAudioClassification.from_pretrained`; but `dtype` is float32 unless it is given.

    Raises:
        OSError: if there is no such model.
        ValueError: if the model type is not supported, or `max_seconds` is given and the model is not a Whisper.
        TypeError: if `max_length` is given and the model is not an AST.
    """
    model = _load_for_labels(AutoModelForAudioClassification, name, list(labels), multi_label, kwargs)
    if max_length is not None:
        resize_ast(model, max_length=max_length)
    if max_seconds is not None:
        resize_whisper(model, max_seconds)
    return model


def load_frame_classifier(name: Union[str, os.PathLike], labels: Sequence[str], **kwargs: Any) -> PreTrainedModel:
    """Load a pretrained model as one that gives each frame any of these labels, with a new output layer.

    Its loss is that of one label a frame; `AudioTrainer` has that of several.

    Args:
        name: folder or Hub id of the model.
        labels: their names, in the order of the model's outputs.
        **kwargs: for `AutoModelForAudioFrameClassification.from_pretrained`; but `dtype` is float32 unless it is given.

    Raises:
        OSError: if there is no such model.
        ValueError: if there is no such model of its type, or the model has convolutions behind its encoder.
    """
    auto_class = AutoModelForAudioFrameClassification
    _check_type(auto_class, name, "labels of frames")
    return _load_for_labels(auto_class, name, list(labels), True, kwargs)


def load_xvector(name: Union[str, os.PathLike], speakers: Sequence[str], **kwargs: Any) -> PreTrainedModel:
    """Load a pretrained model with an x-vector head, for AMSoftmax over these speakers.

    Args:
        name: folder or Hub id of the model.
        speakers: to train on, in the order of the loss's classes.
        **kwargs: for `AutoModelForAudioXVector.from_pretrained`; but `dtype` is float32 unless it is given.

    Raises:
        OSError: if there is no such model.
        ValueError: if there is no such model of its type.
    """
    auto_class = AutoModelForAudioXVector
    _check_type(auto_class, name, "speaker embeddings")
    old_labels, labels = list(AutoConfig.from_pretrained(name).id2label.values()), list(speakers)
    model = auto_class.from_pretrained(name, **{**_options(labels), **kwargs})
    if old_labels != labels:
        nn.init.normal_(model.objective.weight)  # as a new one is drawn
    return model


def _check_type(auto_class: Any, name: Union[str, os.PathLike], task: str) -> None:
    model_type = AutoConfig.from_pretrained(name).model_type
    types = [known for known in types_of_auto_class(auto_class.__name__) if known in supported_backbones()]
    if model_type not in types:
        raise ValueError(
            f"{os.fspath(name)} is of type {model_type!r}, of which there is no model for {task}. Use one of: "
            f"{', '.join(types)}."
        )


def _load_for_labels(
    auto_class: Any, name: Union[str, os.PathLike], labels: list[str], multi_label: bool, kwargs: dict[str, Any]
) -> PreTrainedModel:
    old_labels = list(AutoConfig.from_pretrained(name).id2label.values())
    problem_type = f"{'multi' if multi_label else 'single'}_label_classification"
    model = auto_class.from_pretrained(name, **{**_options(labels), "problem_type": problem_type, **kwargs})
    if old_labels != labels and len(old_labels) == len(labels):
        _renew_output_layer(model)
    return model


def _options(labels: list[str]) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for a new output layer for these labels."""
    label2id = {label: index for index, label in enumerate(labels)}
    return {
        "dtype": torch.float32,
        "ignore_mismatched_sizes": True,
        "id2label": dict(enumerate(labels)),
        "label2id": label2id,
    }


def _renew_output_layer(model: PreTrainedModel) -> None:
    for name in resolve(model).head:
        for module in model.get_submodule(name).modules():
            if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels:
                nn.init.normal_(module.weight, std=initializer_std(model.config))
                nn.init.zeros_(module.bias)
