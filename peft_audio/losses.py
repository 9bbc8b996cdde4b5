"""The loss of a classifier, for all kinds of targets, in the form that the Trainer's `compute_loss_func` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional, Union

import torch
from torch.nn import functional


IGNORED = -100  # transformers' mark of targets that do not count


def classification_loss(
    outputs: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    num_items_in_batch: Union[int, torch.Tensor, None] = None,
    label_smoothing: float = 0.0,
    loss: Optional[str] = None,
) -> torch.Tensor:
    """Mean cross-entropy over the clips, or mean binary cross-entropy over the known targets, of an optimizer step.

    The Trainer counts NaN among the items of a batch. With NaN, each batch's mean over its known targets counts by its
    share of all entries. That is the mean over the step where there is one batch, or as many unknown targets in each;
    -100 is exact always.

    Args:
        outputs: of the model, with "logits" of shape (clips, labels), or (clips, frames, labels).
        labels: class indices (clips,), or 0/1 or soft targets of the logits' shape. Targets that are -100, or NaN in
            vectors, are unknown and left out; cross-entropy knows no clips that are known in part.
        num_items_in_batch: what the Trainer passes: the entries of `labels` other than -100 in all batches of the step,
            on all processes. The losses of these batches then add up to that of the step. None: the batch is the whole
            step.
        label_smoothing: for cross-entropy, as in torch.
        loss: "cross_entropy" or "binary_cross_entropy". None: the former for class indices, the latter for vectors.

    Raises:
        ValueError: `loss` is unknown, shapes do not fit, a soft target of cross-entropy is no distribution, or
            `label_smoothing` is asked of binary cross-entropy.
    """
    logits = outputs["logits"].float()
    are_indices = _check_labels(labels, logits)
    loss = loss or ("cross_entropy" if are_indices else "binary_cross_entropy")
    if loss not in LOSSES:
        raise ValueError(f"loss must be {' or '.join(LOSSES)}, got {loss!r}.")
    total, count = LOSSES[loss](logits, labels, label_smoothing)
    if num_items_in_batch is not None:
        count = count * num_items_in_batch / labels.ne(IGNORED).sum().clamp(min=1)
    return total / torch.clamp(count, min=1e-6)  # 0 where all is unknown


def _check_labels(labels: torch.Tensor, logits: torch.Tensor) -> bool:
    """Return whether the labels are class indices, not vectors. Raises `ValueError` where they are neither."""
    are_indices = labels.shape == logits.shape[:1] and not labels.is_floating_point()
    if not are_indices and labels.shape != logits.shape:
        raise ValueError(
            f"labels must be class indices (integers) of shape {tuple(logits.shape[:1])}, or targets of the logits' "
            f"shape {tuple(logits.shape)}, got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    return are_indices


def _cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of the losses and the number of the clips that count."""
    options: dict[str, Any] = {"reduction": "sum", "label_smoothing": label_smoothing}
    if labels.ndim == 1:
        return functional.cross_entropy(logits, labels.long(), **options), labels.ne(IGNORED).sum()
    labels = labels.to(logits.dtype)
    sums = labels.sum(dim=-1)
    wrong = ~torch.isclose(sums, torch.ones_like(sums), atol=1e-3) | (labels < 0).any(dim=-1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"cross_entropy needs targets that are 0 or more and sum to 1 in every clip; those of clip {row} of the "
            f"batch sum to {sums[row].item():g}. For several labels a clip, or unknown ones, use binary_cross_entropy."
        )
    return functional.cross_entropy(logits, labels, **options), labels.new_tensor(len(labels))


def _binary_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of the losses and the number of the targets that are known."""
    if label_smoothing:
        raise ValueError(f"label_smoothing={label_smoothing} is for cross_entropy: set it to 0.")
    if labels.ndim == 1:
        known = labels.ne(IGNORED)
        logits, labels = logits[known], functional.one_hot(labels[known].long(), logits.shape[-1])
    known = ~(labels.isnan() | labels.eq(IGNORED))
    targets = labels[known].to(logits.dtype)
    return functional.binary_cross_entropy_with_logits(logits[known], targets, reduction="sum"), known.sum()


LOSSES = {"cross_entropy": _cross_entropy, "binary_cross_entropy": _binary_cross_entropy}
