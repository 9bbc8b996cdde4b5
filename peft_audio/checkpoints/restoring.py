"""Giving a freshly loaded base model the input length, head and labels that an adapter was trained with."""

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
from ..upstream.transformers_models import initialize_weights
from ..whisper.padding import PADDING_MASK, remembers_padding_mask, use_padding_mask
from ..whisper.resize import POSITIONS, restore_positions
from .base_settings import HEAD, POOLING, labels_of, set_labels


def restore_settings(model: nn.Module, settings: dict[str, Any]) -> None:
    """Give the model the input length and the kind of head that an adapter was trained with, in place.

    Args:
        model: the base model as it was loaded. Resizes that it already went through are not repeated.
        settings: the adapter's base-model settings.
    """
    config: Any = model.config
    done = getattr(config, RESIZES, None) or []
    for step in (settings.get(RESIZES) or [])[len(done) :]:
        resize_ast(model, **step)
    if POSITIONS in settings and settings[POSITIONS] != getattr(config, POSITIONS, None):
        restore_positions(model, settings[POSITIONS])
    if settings.get(POOLING) and not pools_statistics(model):
        use_statistics_pooling(model)
    # Also for a base model that was saved with mean-token pooling: its hook is not part of the files.
    if settings.get(TOKEN_POOLING) or remembers_mean_token_pooling(config):
        use_mean_token_pooling(model)
    if settings.get(PADDING_MASK) or remembers_padding_mask(config):
        use_padding_mask(model)


def restore_labels(model: Any, config: EncoderAdapterConfig) -> None:
    """Give the model the labels that the adapter was trained on, if the adapter brings a head for them.

    A head for another number of labels is replaced by one with random weights; the adapter's own head is used instead.

    Args:
        model: a model of transformers with a supported backbone.
        config: the adapter's configuration.
    """
    settings, head = config.base_settings or {}, {path.partition(".")[0] for path in resolve(model).head}
    if not head or not head <= {path.partition(".")[0] for path in config.saved_modules}:
        return
    labels, fields = labels_of(settings), settings.get(HEAD) or {}
    has_other_size = bool(labels) and len(labels) != model.config.num_labels
    has_other_size |= any(getattr(model.config, name, None) != value for name, value in fields.items())
    set_labels(model.config, settings)
    model.config.update(fields)
    if has_other_size:
        model.num_labels = model.config.num_labels
        with torch.device("meta"):
            other = type(model)(copy.deepcopy(model.config))
        for name in sorted(head):
            _replace_where_shapes_differ(model, name, getattr(other, name))


def _replace_where_shapes_differ(model: Any, name: str, other: nn.Module) -> None:
    old = getattr(model, name)
    shapes = [{key: tensor.shape for key, tensor in module.state_dict().items()} for module in (old, other)]
    if shapes[0] != shapes[1]:
        reference = next(old.parameters())
        new = other.to_empty(device=reference.device).to(reference.dtype).train(old.training)
        initialize_weights(model, new)
        setattr(model, name, new)
