"""Callbacks that say what goes wrong in a training, and what to try."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from typing import Any, Optional

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


logger = logging.getLogger(__name__)

MIN_LOGS = 4  # of fewer, the trend of a loss or a gradient norm says nothing
SMALL_LOSS = 0.05  # one that starts below has nowhere to fall
SMALL_FALL = 0.02  # share of the loss that noise alone may take away
NO_NUMBER = (
    "The training loss is no number any more, so the weights are not either. Lower the learning rate, or train in "
    "float32 or bfloat16 instead of float16."
)
GROWTH = 10.0  # of gradient norms; in a training that goes well they fall


class GradientCheck(TrainerCallback):
    """Warns of parameters that should train but had no gradient in the whole first epoch."""

    def __init__(self) -> None:
        self.waiting: Optional[dict[str, nn.Parameter]] = None

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Optional[nn.Module] = None,
        **kwargs: Any,
    ) -> None:
        """Note which parameters have a gradient."""
        if self.waiting is None and model is not None:
            self.waiting = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.waiting = {name: parameter for name, parameter in (self.waiting or {}).items() if parameter.grad is None}

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warn, once."""
        if self.waiting:
            logger.warning(
                "%d of the parameters to train got no gradient, so they stay as they are: %s%s. If they are those of an "
                "adapter, its method cannot reach this kind of model: choose another one.",
                len(self.waiting),
                ", ".join(list(self.waiting)[:3]),
                ", ..." if len(self.waiting) > 3 else "",
            )
            self.waiting = {}


class ProgressCheck(TrainerCallback):
    """Warns at the end of a training whose loss has not fallen or is no number, or whose gradient norms have grown.

    It reads what the Trainer logs, and says nothing where that is less than four times.
    """

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warn, once for each of the three."""
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        norms = [entry["grad_norm"] for entry in state.log_history if "grad_norm" in entry]
        for problem in (problem_with_loss(losses), problem_with_gradients(norms)):
            if problem is not None:
                logger.warning(problem)


def problem_with_loss(losses: list[float]) -> Optional[str]:
    """Return what is wrong with a training's losses, in the order of time, and what to try; None if nothing is."""
    if not all(map(math.isfinite, losses)):
        return NO_NUMBER
    first, last = _ends(losses)
    # Losses of single batches go up and down.
    noise = median([abs(later - loss) for loss, later in pairwise(losses)] or [0.0])
    if len(losses) < MIN_LOGS or first < SMALL_LOSS or first - last > max(SMALL_FALL * first, noise):
        return None
    return (
        f"The training loss has not fallen: {first:.3f} at the start, {last:.3f} at the end. Try another learning rate, "
        "higher first (and head_learning_rate for a new head), then more epochs. If no rate helps, look at the labels."
    )


def problem_at_the_end(log_history: list[dict[str, float]]) -> Optional[str]:
    """Return what to try if the last loss of a training or an evaluation is no number, None if both are.

    Args:
        log_history: `trainer.state.log_history`.
    """
    last = {name: entry[name] for entry in log_history for name in ("loss", "eval_loss") if name in entry}
    return None if all(map(math.isfinite, last.values())) else NO_NUMBER


def problem_with_gradients(norms: list[float]) -> Optional[str]:
    """Return what is wrong with a training's gradient norms, in the order of time, and what to try; None if nothing is."""
    first, last = _ends(norms)
    if len(norms) < MIN_LOGS or not last > GROWTH * first:
        return None
    return (
        f"Gradient norms have grown from {first:.2g} to {last:.2g}. Lower the learning rate, or clip gradients harder "
        "(max_grad_norm), or warm up longer (warmup_steps)."
    )


def problems_beside_probe(metrics: dict[str, float], probe: dict[str, float]) -> Iterator[str]:
    """Yield what to try, if a model is worse than a linear probe by more than its standard error, in its first metric.

    Args:
        metrics: of the model, as `AudioTrainer.test` returns them.
        probe: of the linear probe, without "eval_".
    """
    for name, value in list(probe.items())[:1]:
        score, error = metrics[f"eval_{name}"], metrics[f"eval_{name}_standard_error"]
        if score < value - error:
            yield (
                f"The {name} of {score:.3f} is below the {value:.3f} of a linear probe (logistic regression on the features of "
                "the frozen model): the training has made them worse. Try a lower learning_rate, a head_learning_rate ten "
                "times as high, more epochs, or another method."
            )


def _ends(values: list[float]) -> tuple[float, float]:
    """Return the medians of the first and the last quarter."""
    quarter = max(1, len(values) // 4)
    return (median(values[:quarter]), median(values[-quarter:])) if values else (0.0, 0.0)
