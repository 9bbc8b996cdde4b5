"""Padding, truncation and normalization of clips as the feature extractors of transformers do them, on any device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

import torch
from torch.nn.functional import pad
from transformers.utils import PaddingStrategy


SMALLEST_VARIANCE = 1e-7  # is added to every variance


def standardized(values: torch.Tensor, length: Optional[int] = None, padding_value: float = 0.0) -> torch.Tensor:
    """Return values with a mean of 0 and a variance of 1.

    Args:
        values: `(samples,)`.
        length: samples that count; those behind become `padding_value`. None: all.
        padding_value: see `length`.

    Returns:
        Values of the same shape, float32; float64 for integers.
    """
    values = values if values.is_floating_point() else values.double()
    mean, variance = moments(values[:length])
    result = (values - mean) / (variance + SMALLEST_VARIANCE).sqrt()
    if length is not None:
        result[length:] = padding_value
    return result


def moments(values: torch.Tensor, correction: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return means and variances along the first axis, in the dtype of the values.

    On a CPU they are NumPy's to the last bit, as those of the extractors: of a clip that hardly changes, what is left
    without the mean is the mean's rounding error.

    Args:
        values: `(samples, ...)`.
        correction: the variance's divisor is the number of samples less this.
    """
    if values.device.type == "cpu":
        array = values.numpy()
        return torch.as_tensor(array.mean(0)), torch.as_tensor(array.var(0, ddof=correction))
    variance, mean = torch.var_mean(values.double(), dim=0, correction=correction)
    return mean.to(values.dtype), variance.to(values.dtype)


def filled(
    rows: list[torch.Tensor], feature_extractor: Any, options: Mapping[str, Any]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Cut and pad clips along their first axis.

    Args:
        rows: `(samples, ...)` each.
        feature_extractor: has the value and the side of the padding.
        options: `padding`, `max_length`, `truncation` and `pad_to_multiple_of`, as for `SequenceFeatureExtractor.pad`.

    Returns:
        The clips, and for each of them 1 where it is and 0 where it is padded, `(samples,)`, int32.

    Raises:
        ValueError: `padding` is no strategy, or a length is needed and missing.
    """
    padding, limit, multiple = options["padding"], options["max_length"], options["pad_to_multiple_of"]
    strategy = PaddingStrategy({True: "longest", False: "do_not_pad"}.get(padding, padding))
    if limit is None and (strategy == PaddingStrategy.MAX_LENGTH or options["truncation"]):
        raise ValueError("max_length must be a number of samples or frames for this padding or truncation, got None.")
    if options["truncation"]:
        rows = [row[: _rounded(limit, multiple)] for row in rows]
    if strategy == PaddingStrategy.LONGEST:
        limit = max(map(len, rows))
    masks = [torch.ones(len(row), dtype=torch.int32, device=row.device) for row in rows]
    if strategy == PaddingStrategy.DO_NOT_PAD:
        return rows, masks
    size, side = _rounded(limit, multiple), feature_extractor.padding_side
    rows = [_padded(row, size, side, feature_extractor.padding_value) for row in rows]
    return rows, [_padded(mask, size, side, 0) for mask in masks]


def _rounded(size: int, multiple: Optional[int]) -> int:
    return size if multiple is None else -(-size // multiple) * multiple


def _padded(row: torch.Tensor, size: int, side: str, value: float) -> torch.Tensor:
    missing = max(0, size - len(row))
    place = (0, missing) if side == "right" else (missing, 0)
    return pad(row, (0, 0) * (row.ndim - 1) + place, value=value) if missing else row
