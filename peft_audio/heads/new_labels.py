"""A pretrained audio classifier for a new set of labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForAudioClassification, PreTrainedModel

from ..ast.resize import resize_ast
from ..backbones.table import resolve


def load_classifier(
    name: Union[str, os.PathLike],
    labels: Sequence[str],
    *,
    multi_label: bool = False,
    max_length: Optional[int] = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a pretrained model as a classifier for these labels, with a new output layer.

    `from_pretrained(..., ignore_mismatched_sizes=True)` alone would keep the old output layer where it has as many labels
    by chance.

    Args:
        name: folder or Hub id of the model.
        labels: the names of the labels, in the order of the model's outputs.
        multi_label: whether a clip can have several labels.
        max_length: frames of 10 ms that an AST is to take, see `resize_ast`; None for the model's own.
        kwargs: for `AutoModelForAudioClassification.from_pretrained`.

    Raises:
        OSError: there is no such model.
        ValueError: the model type is not supported, or `max_length` is given and the model is no AST.
    """
    labels = list(labels)
    old_labels = list(AutoConfig.from_pretrained(name).id2label.values())
    model = AutoModelForAudioClassification.from_pretrained(
        name,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type=f"{'multi' if multi_label else 'single'}_label_classification",
        ignore_mismatched_sizes=True,
        **kwargs,
    )
    if old_labels != labels and len(old_labels) == len(labels):
        _renew_output_layer(model)
    return model if max_length is None else resize_ast(model, max_length=max_length)


def _renew_output_layer(model: PreTrainedModel) -> None:
    for name in resolve(model).head:
        for module in model.get_submodule(name).modules():
            if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels:
                torch.nn.init.normal_(module.weight, std=model.config.initializer_range)
                torch.nn.init.zeros_(module.bias)
