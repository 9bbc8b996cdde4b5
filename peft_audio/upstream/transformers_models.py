"""Methods of transformers' models that are not documented.

Relied upon: `_init_weights`, which every `PreTrainedModel` has, and `_get_feature_vector_attention_mask` of the types
with a convolutional feature encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def initialize_weights(model: Any, module: nn.Module) -> None:
    """Give `module` new weights, drawn as `model` draws those of its own modules."""
    module.apply(model._init_weights)


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
