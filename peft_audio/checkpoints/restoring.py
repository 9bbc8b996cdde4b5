"""Bringing a freshly loaded base model to what an adapter was trained on: its input, its head, its labels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ..ast.resize import RESIZES, resize_ast
from ..backbones.table import resolve
from ..config import EncoderAdapterConfig
from ..heads.mean_token_pooling import TOKEN_POOLING, remembers_mean_token_pooling, use_mean_token_pooling
from ..heads.statistics_pooling import pools_statistics, use_statistics_pooling
from .base_settings import POOLING, labels_of, set_labels


def restore_settings(model: nn.Module, settings: dict[str, Any]) -> None:
    """Give the model the input length and the kind of head in the settings of an adapter."""
    done = getattr(model.config, RESIZES, None) or []
    for step in (settings.get(RESIZES) or [])[len(done) :]:
        resize_ast(model, **step)
    if settings.get(POOLING) and not pools_statistics(model):
        use_statistics_pooling(model)
    # A base model that was saved with this head is loaded without: its hook is no part of the files.
    if settings.get(TOKEN_POOLING) or remembers_mean_token_pooling(model.config):
        use_mean_token_pooling(model)


def restore_labels(model: nn.Module, config: EncoderAdapterConfig) -> None:
    """Give the model the labels that the adapter was trained on, where the adapter brings a head for them.

    A head for another number of labels is replaced by one with random weights, which the adapter's stand in for.
    """
    settings, head = config.base_settings or {}, resolve(model).head
    labels = labels_of(settings)
    if not labels or not head or not set(head) <= set(config.modules_to_save or ()):
        return
    is_larger_or_smaller = len(labels) != model.config.num_labels
    set_labels(model.config, settings)
    if is_larger_or_smaller:
        model.num_labels = len(labels)
        with torch.device("meta"):
            other = type(model)(copy.deepcopy(model.config))
        for name in head:
            _replace_where_shapes_differ(model, name, getattr(other, name))


def _replace_where_shapes_differ(model: nn.Module, name: str, other: nn.Module) -> None:
    old = getattr(model, name)
    shapes = [{key: tensor.shape for key, tensor in module.state_dict().items()} for module in (old, other)]
    if shapes[0] != shapes[1]:
        reference = next(old.parameters())
        new = other.to_empty(device=reference.device).to(reference.dtype).train(old.training)
        new.apply(model._init_weights)
        setattr(model, name, new)
