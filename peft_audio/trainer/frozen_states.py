"""Training data with what the frozen part of a model makes of each clip in its place."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Union

from torch.utils.data import Dataset

from ..caching import cache_frozen
from ..data import TrainingData
from ..whisper.padding import WithPaddingMask, remembers_padding_mask


def cache_training_data(
    model: Any, data: TrainingData, cache_dir: Union[str, os.PathLike], deterministic: bool = False
) -> TrainingData:
    """Run `cache_frozen` over all data sets of a training.

    Args:
        model: as it will be trained.
        data: from `prepare_clips`.
        cache_dir: see `cache_frozen`, and there for `deterministic`.
        deterministic: accept dropout and SpecAugment in the frozen part.

    Raises:
        ValueError: as `cache_frozen`.
        OSError: as `cache_frozen`.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model

    def cached(dataset: Any) -> Dataset:
        clips = WithPaddingMask(dataset) if remembers_padding_mask(base.config) else dataset
        return cache_frozen(model, clips, cache_dir, deterministic=deterministic)

    train, test = cached(data.train), cached(data.test)
    return replace(
        data, train=train, test=test, evaluation=test if data.evaluation is data.test else cached(data.evaluation)
    )
