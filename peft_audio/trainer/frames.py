"""What labels of frames need of a model: where its frames lie, and metrics over frames."""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import EvalPrediction

from ..data import MEL_HOP_SECONDS, MEL_WINDOW_SECONDS, FrameGrid
from ..losses import IGNORED
from ..upstream.transformers_models import frame_count
from .metrics import multi_label_metrics
from .reports import logits_of


LONGEST = 1 << 24  # samples that no model needs for two frames


def frame_grid(model: Any, feature_extractor: Any) -> FrameGrid:
    """Return where the frames of a model lie in time.

    Args:
        model: a model for labels of frames, with or without adapters.
        feature_extractor: the model's.

    Raises:
        ValueError: the model cannot tell how many frames it makes.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if math.isinf(frame_count(base, LONGEST)):
        raise ValueError(f"frame_grid takes a model that can tell its number of frames, got a {type(base).__name__}.")

    with torch.device("meta"):  # without weights, which the data sets would keep in memory
        shell: Any = type(base)(base.config)
    count = partial(_count, shell)
    if base.main_input_name == "input_features":  # rows of spectrograms, several joined to one
        joined = feature_extractor.stride
        window = MEL_WINDOW_SECONDS + (joined - 1) * MEL_HOP_SECONDS
        return FrameGrid(count, base.main_input_name, window, joined * MEL_HOP_SECONDS)
    # The least samples that make one frame are what a frame sees; as many more as make a second one are its hop.
    first, second = (bisect_left(range(LONGEST), frames, key=count) for frames in (1, 2))
    rate = feature_extractor.sampling_rate
    return FrameGrid(count, base.main_input_name, first / rate, (second - first) / rate)


def _count(model: Any, length: int) -> int:
    return int(frame_count(model, length))


def frame_metrics(prediction: Any) -> dict[str, float]:
    """Return mean average precision and micro-F1 over all frames that are no padding.

    Args:
        prediction: an `EvalPrediction` of the Trainer: logits and 0/1 targets, `(clips, frames, labels)` or
            `(frames, labels)`, with targets of -100 in padding. Where no frame has a label, the precision is no number.
    """
    logits, targets = np.asarray(logits_of(prediction.predictions)), np.asarray(prediction.label_ids)
    known = (targets != IGNORED).all(axis=-1)
    logits, targets = logits[known], targets[known]
    return multi_label_metrics(EvalPrediction(logits, targets))
