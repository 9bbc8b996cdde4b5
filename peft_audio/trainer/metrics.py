"""Metrics of classifiers: the Trainer's `compute_metrics`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..metrics import mean_average_precision
from .reports import logits_of


def single_label_metrics(prediction: Any) -> dict[str, float]:
    """Return accuracy and macro-F1 of logits `(clips, labels)` against class indices `(clips,)`.

    Args:
        prediction: an `EvalPrediction` of the Trainer.
    """
    from sklearn.metrics import accuracy_score, f1_score

    predicted = logits_of(prediction.predictions).argmax(axis=-1)
    return {
        "accuracy": accuracy_score(prediction.label_ids, predicted),
        "macro_f1": f1_score(prediction.label_ids, predicted, average="macro", zero_division=0),
    }


def multi_label_metrics(prediction: Any) -> dict[str, float]:
    """Return mean average precision and micro-F1 of logits against 0/1 targets, `(clips, labels)` both.

    The precision of logits that are no numbers, as those of a training that went wrong, is none either, nor is that where
    no target is 1.

    Args:
        prediction: an `EvalPrediction` of the Trainer.
    """
    from sklearn.metrics import f1_score

    logits, targets = logits_of(prediction.predictions), prediction.label_ids
    is_defined = np.isfinite(logits).all() and (targets == 1).any()
    return {
        "map": mean_average_precision(logits, targets) if is_defined else float("nan"),
        "micro_f1": f1_score(targets, logits > 0, average="micro", zero_division=0),
    }
