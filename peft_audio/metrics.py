"""Metrics of speaker verification and audio tagging: equal error rate, minimum detection cost, mean average precision.

In verification a trial is a pair of recordings with a score. Label 1 is a target trial (the same speaker), label 0 a
nontarget trial. A trial is accepted if its score reaches the threshold, so a higher score must mean more similar: negate
distances.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
import torch


def equal_error_rate(scores: Any, labels: Any) -> float:
    """Return the error rate at the threshold where miss rate and false accept rate are equal (EER).

    Both rates are interpolated linearly between neighboring operating points of `detection_error_tradeoff`: the EER is
    where the line through the points crosses the diagonal. Trials with the same score are accepted or missed together.
    Some toolkits use the convex hull of the points instead, which gives the same rate or a lower one.

    Args:
        scores: `(trials,)`, an array, list or tensor of finite numbers. Only their order matters.
        labels: `(trials,)`, 1 or True for target trials, 0 or False for nontarget trials.

    Returns:
        The rate in [0, 1]: 0 if every target trial scores higher than every nontarget trial, about 0.5 at chance.

    Raises:
        ValueError: as `detection_error_tradeoff` does.

    Examples:
        >>> from peft_audio.metrics import equal_error_rate
        >>> equal_error_rate(scores=[0.9, 0.8, 0.3, 0.6, 0.2, 0.1], labels=[1, 1, 1, 0, 0, 0])
        0.3333333333333333
    """
    false_accept_rates, miss_rates, _ = detection_error_tradeoff(scores, labels)
    return float(np.interp(0.0, miss_rates - false_accept_rates, false_accept_rates))


def min_dcf(scores: Any, labels: Any, p_target: float = 0.01, c_miss: float = 1, c_fa: float = 1) -> float:
    """Return the lowest normalized detection cost over all thresholds (minDCF), as used by NIST and VoxCeleb.

    The cost is `c_miss * p_target * miss rate + c_fa * (1 - p_target) * false accept rate`, divided by the lower cost
    of accepting all trials or none, `min(c_miss * p_target, c_fa * (1 - p_target))` (NIST SRE 2010, evaluation plan).
    The defaults are VoxCeleb's (Nagrani et al. 2017).

    Args:
        scores: `(trials,)`, as for `equal_error_rate`.
        labels: `(trials,)`, as for `equal_error_rate`.
        p_target: the probability of a target trial in the application, instead of their share in `labels`.
        c_miss: the cost of missing a target trial.
        c_fa: the cost of accepting a nontarget trial.

    Returns:
        The cost in [0, 1]: 1 if no threshold is better than accepting all trials or none.

    Raises:
        ValueError: as `detection_error_tradeoff` does, if `p_target` is outside (0, 1), or if a cost is not positive.

    Examples:
        >>> from peft_audio.metrics import min_dcf
        >>> min_dcf(scores=[0.9, 0.8, 0.3, 0.6, 0.2, 0.1], labels=[1, 1, 1, 0, 0, 0])
        0.3333333333333333
    """
    _require_between_0_and("p_target", p_target, 1, "it is a probability, 0.01 in VoxCeleb")
    _require_between_0_and("c_miss", c_miss, math.inf, "only the ratio of c_miss to c_fa counts")
    _require_between_0_and("c_fa", c_fa, math.inf, "only the ratio of c_miss to c_fa counts")
    miss_weight, false_accept_weight = float(c_miss) * float(p_target), float(c_fa) * (1 - float(p_target))
    false_accept_rates, miss_rates, _ = detection_error_tradeoff(scores, labels)
    costs = miss_weight * miss_rates + false_accept_weight * false_accept_rates
    return float(costs.min() / min(miss_weight, false_accept_weight))


def mean_average_precision(scores: Any, targets: Any) -> float:
    """Return the average precision of the clips in order of score, averaged over the labels (mAP).

    A label's average precision is the sum over thresholds of the precision times the increase of the recall, without
    interpolation. Clips with the same score enter together. All labels have the same weight (macro average). A label that
    no clip is known to have is left out, because its precision is undefined.

    Args:
        scores: `(clips, labels)`, an array, list or tensor of finite numbers. Only their order within a label matters.
        targets: `(clips, labels)`, 1 or True where the clip has the label, 0 or False where not, NaN where that is
            unknown. Such a clip is left out of that label's precision.

    Returns:
        The mean in (0, 1]. Constant scores give the mean share of positive clips.

    Raises:
        ValueError: if the inputs are not two-dimensional, are empty or have different shapes, scores are not finite,
            targets are other than 0, 1 and NaN, or no target is positive.

    Examples:
        >>> from peft_audio.metrics import mean_average_precision
        >>> mean_average_precision(scores=[[0.9, 0.2], [0.6, 0.7], [0.1, 0.4]], targets=[[1, 1], [0, 0], [1, 0]])
        0.5833333333333333
    """
    scores = _finite("scores", _array("scores", scores, ("clips", "labels")))
    targets = _array("targets", targets, ("clips", "labels"))
    _require_same_shape("targets", targets, scores)
    known = ~np.isnan(targets)
    _require_binary("targets", targets, known, "write NaN where a label is unknown")
    positive = targets == 1
    if not positive.any():
        raise ValueError("`targets` must have a positive target, got none: add a clip that has one of the labels.")
    precisions = [
        _average_precision(scores[known[:, label], label], positive[known[:, label], label])
        for label in np.flatnonzero(positive.any(axis=0))
    ]
    return float(np.mean(precisions))


def detection_error_tradeoff(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the two error rates of a detector at every threshold: the DET curve (Martin et al. 1997).

    Args:
        scores: `(trials,)`, as for `equal_error_rate`.
        labels: `(trials,)`, as for `equal_error_rate`.

    Returns:
        `(false_accept_rates, miss_rates, thresholds)`, three float64 arrays of shape `(distinct scores + 1,)`. The
        thresholds are the distinct scores in ascending order, then infinity; trials that reach a threshold are accepted.
        So the false accept rate falls from 1 to 0 while the miss rate rises from 0 to 1, both ends included.

    Raises:
        ValueError: if the inputs are not one-dimensional, are empty or have different lengths, scores are not finite or
            all the same, labels are other than 0 and 1, or all labels are the same.
    """
    scores = _finite("scores", _array("scores", scores, ("trials",)))
    labels = _array("labels", labels, ("trials",))
    _require_same_shape("labels", labels, scores)
    _require_binary("labels", labels, np.full(labels.shape, True), "write 1 for target trials, 0 for nontarget trials")
    target = labels == 1
    if target.all() or not target.any():
        raise ValueError(
            f"`labels` must hold both 1 and 0, got {labels.size} times {int(target[0])}: "
            f"add {'nontarget' if target[0] else 'target'} trials."
        )
    if (scores == scores[0]).all():
        raise ValueError(
            f"`scores` must differ between trials, got {scores[0].item()} for all {scores.size}: "
            "no threshold separates them; check the embeddings they come from."
        )
    false_accepts, misses, thresholds = _count_errors(scores, target)
    return false_accepts / false_accepts[0], misses / misses[-1], np.append(thresholds, np.inf)


def _count_errors(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `(false_accepts, misses, thresholds)`: thresholds in ascending order, counts at each and at infinity."""
    thresholds, position = np.unique(scores, return_inverse=True)

    def count_below(kind: np.ndarray) -> np.ndarray:
        return np.append(0, np.bincount(position[kind], minlength=thresholds.size).cumsum())

    misses, rejections = count_below(positive), count_below(~positive)
    return rejections[-1] - rejections, misses, thresholds


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    false_accepts, misses, _ = _count_errors(scores, positive)
    hits = (misses[-1] - misses)[:-1]
    return np.sum(hits / (hits + false_accepts[:-1]) * np.diff(misses)) / misses[-1]


def _array(argument: str, values: Any, axes: tuple[str, ...]) -> np.ndarray:
    """Return `values` as an array of real numbers with these axes, none of them empty, or raise ValueError."""
    rule = f"`{argument}` must be numbers of shape ({', '.join(axes)}{',' if len(axes) == 1 else ''})"
    try:
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            values = values.double() if values.is_floating_point() else values  # numpy has no bfloat16
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # e.g. rows of different lengths
        raise ValueError(f"{rule}, got {type(values).__name__}: {error}. Pass a numpy array.") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{rule}, got dtype {array.dtype}: convert them to float first.")
    if array.ndim != len(axes):
        raise ValueError(f"{rule}, got shape {array.shape}: reshape them, or select the axes to use.")
    if array.size == 0:
        raise ValueError(f"{rule}, at least one each, got shape {array.shape}: collect them before the call.")
    return array


def _finite(argument: str, array: np.ndarray) -> np.ndarray:
    _require_everywhere(np.isfinite(array), argument, array, "finite", "leave those out, or find where they come from")
    return array


def _require_binary(argument: str, array: np.ndarray, known: np.ndarray, way_out: str) -> None:
    _require_everywhere((array == 0) | (array == 1) | ~known, argument, array, "0 or 1", way_out)


def _require_everywhere(holds: np.ndarray, argument: str, array: np.ndarray, rule: str, way_out: str) -> None:
    if not holds.all():
        first = tuple(np.argwhere(~holds)[0].tolist())
        place = f"{argument}[{', '.join(map(str, first))}]"
        number = np.count_nonzero(~holds)
        raise ValueError(f"`{argument}` must be {rule}, got {place} = {array[first]} ({number} in all): {way_out}.")


def _require_same_shape(argument: str, array: np.ndarray, scores: np.ndarray) -> None:
    if array.shape != scores.shape:
        raise ValueError(
            f"`{argument}` must have the shape of `scores`, {scores.shape}, got {array.shape}: "
            f"each score needs its own value in `{argument}`."
        )


def _require_between_0_and(argument: str, value: Any, limit: float, way_out: str) -> None:
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    if not is_real or not 0 < value < limit:
        raise ValueError(f"`{argument}` must be a number above 0 and below {limit}, got {value!r}: {way_out}.")
