"""A Trainer for audio classifiers.

`import peft_audio` does not import it, because the Trainer of transformers takes long to import.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Optional, Union
from unittest import mock

import numpy as np
from peft import PeftModel
from torch import nn
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, PredictionOutput, TrainOutput

from .checkpoints.trainer_checkpoints import last_complete_checkpoint
from .losses import classification_loss


__all__ = [
    "AudioTrainer",
    "GradientCheck",
    "classification_loss",
    "logits_of",
    "parameter_counts",
    "plot_curves",
    "saved_bytes",
]

logger = logging.getLogger(__name__)


class AudioTrainer(Trainer):
    """The Trainer of transformers, for classifiers with one or several labels a clip.

    - Its loss is `classification_loss` unless another one is given: many audio classifiers of transformers compute none,
      or a wrong one, from several labels a clip.
    - Checkpoints of whole models have the names that the model has for its tensors. transformers saves some models (AST)
      under the names of older releases. Its `from_pretrained` knows them, its Trainer does not: resuming, or loading the
      best model, would leave most of the weights as they happen to be. The model that is saved in the end keeps the
      names of its published form.
    - `GradientCheck` is among its callbacks.

    Args:
        args: as for the Trainer.
        callbacks: as for the Trainer.
        compute_loss_func: as for the Trainer; None for `classification_loss`.
        kwargs: further arguments of the Trainer.
    """

    def __init__(
        self,
        model: Optional[nn.Module] = None,
        args: Optional[TrainingArguments] = None,
        *,
        callbacks: Iterable[TrainerCallback] = (),
        compute_loss_func: Any = None,
        **kwargs: Any,
    ) -> None:
        if compute_loss_func is None:
            label_smoothing = 0.0 if args is None else args.label_smoothing_factor
            compute_loss_func = functools.partial(classification_loss, label_smoothing=label_smoothing)
        callbacks = [GradientCheck(), *callbacks]
        super().__init__(model, args, callbacks=callbacks, compute_loss_func=compute_loss_func, **kwargs)

    def train(
        self,
        resume_from_checkpoint: Union[str, bool, None] = None,
        trial: Any = None,
        ignore_keys_for_eval: Optional[list[str]] = None,
    ) -> TrainOutput:
        """See `Trainer.train`.

        Args:
            resume_from_checkpoint: the folder of a checkpoint, or True (or "True", "last") for the last complete one in
                the output folder.
            trial: as for the Trainer.
            ignore_keys_for_eval: as for the Trainer.

        Raises:
            FileNotFoundError: there is no such checkpoint.
        """
        wanted = str(resume_from_checkpoint or False)
        if wanted.lower() == "false":
            return super().train(None, trial, ignore_keys_for_eval)
        folder = str(self.args.output_dir)
        found = last_complete_checkpoint(folder) if wanted.lower() in ("true", "last") else wanted
        if found is None or not Path(found).is_dir():
            raise FileNotFoundError(
                f"resume_from_checkpoint {wanted}: no such checkpoint. Give a checkpoint-N folder, or True for the last one "
                f"in {folder}."
            )
        return super().train(str(found), trial, ignore_keys_for_eval)

    def save_model(self, output_dir: Optional[str] = None, _internal_call: bool = False) -> None:
        """See `Trainer.save_model`."""
        is_checkpoint = output_dir is not None and Path(output_dir).name.startswith(PREFIX_CHECKPOINT_DIR)
        if not (is_checkpoint and isinstance(self.model, PreTrainedModel)):
            return super().save_model(output_dir, _internal_call)
        save = functools.partial(self.model.save_pretrained, save_original_format=False)
        with mock.patch.object(self.model, "save_pretrained", save):
            return super().save_model(output_dir, _internal_call)

    def standard_errors(self, output: PredictionOutput, num_resamples: int = 100, seed: int = 0) -> dict[str, float]:
        """Return the bootstrap standard error, over the clips of a data set, of every metric of `compute_metrics`.

        Args:
            output: of `predict` for the data set.
            num_resamples: how often as many clips are drawn, with replacement.
            seed: of the draws.

        Raises:
            ValueError: the Trainer has no `compute_metrics`.
        """
        logits, targets, compute = logits_of(output.predictions), np.asarray(output.label_ids), self.compute_metrics
        if compute is None:
            raise ValueError("standard_errors needs the Trainer's `compute_metrics`, which is None.")
        draws = np.random.default_rng(seed).integers(len(targets), size=(num_resamples, len(targets)))
        values = [compute(EvalPrediction(logits[clips], targets[clips])) for clips in draws]
        return {name: float(np.std([row[name] for row in values], ddof=1)) for name in values[0]}


def logits_of(predictions: Any) -> np.ndarray:
    """Return the logits `(clips, labels)` among what the Trainer predicts; hidden states stand behind them, if any."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Return the numbers of `trainable_parameters` and `total_parameters`, as PEFT counts them.

    Args:
        model: a `PeftModel` or a model of transformers.
    """
    if isinstance(model, PeftModel):
        trainable, total = model.get_nb_trainable_parameters()
    else:
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        trainable, total = sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
    return {"trainable_parameters": trainable, "total_parameters": total}


def saved_bytes(folder: Union[str, Path]) -> int:
    """Return the size of the weights saved in a folder: an adapter's or, where there is none, a whole model's."""
    adapters = list(Path(folder).glob("adapter_model*.safetensors"))
    return sum(file.stat().st_size for file in adapters or Path(folder).glob("model*.safetensors"))


def plot_curves(
    log_history: list[dict[str, float]], path: Union[str, Path], metrics: Sequence[str] = ("accuracy",)
) -> None:
    """Draw the loss and metrics over the epochs; needs matplotlib.

    Args:
        log_history: `trainer.state.log_history`.
        path: of the picture; its ending says in which format.
        metrics: names of metrics between 0 and 1, without "eval_".
    """
    from matplotlib.figure import Figure  # with no pyplot there is no display to look for, and no state to clean up

    def curve(name: str) -> tuple[list[float], list[float]]:
        # A later entry of the same epoch (the evaluation after training) replaces the earlier one.
        points = {entry["epoch"]: entry[name] for entry in log_history if name in entry}
        return list(points), list(points.values())

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss_axes, metric_axes = figure.subplots(1, 2)
    loss_axes.plot(*curve("loss"), marker=".", label="training")
    loss_axes.plot(*curve("eval_loss"), marker=".", label="evaluation")
    loss_axes.set(xlabel="epoch", ylabel="loss")
    for name in metrics:
        metric_axes.plot(*curve(f"eval_{name}"), marker=".", label=name)
    metric_axes.set(xlabel="epoch", ylabel="evaluation", ylim=(0, 1))
    for axes in (loss_axes, metric_axes):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


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
