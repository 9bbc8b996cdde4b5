"""The Trainer of transformers, for models with an x-vector head: it predicts speaker embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Optional

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data import FrameGrid
from .adapter_training import AdapterTraining


class XVectorTrainer(AdapterTraining):
    """The Trainer of transformers, for models that give speaker embeddings. See `AdapterTraining` for what it does besides.

    The loss is the model's own, AMSoftmax over the speakers to train on. Predictions are embeddings, without a loss:
    whoever tests a verification is none of these speakers. Data sets with `set_epoch` are told the epoch.

    Args:
        model: as for the Trainer.
        args: as for the Trainer.
        callbacks: as for the Trainer.
        kwargs: further arguments of `AdapterTraining` and the Trainer.
    """

    def __init__(
        self,
        model: Optional[nn.Module] = None,
        args: Optional[TrainingArguments] = None,
        *,
        callbacks: Iterable[TrainerCallback] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, callbacks=[TellEpoch(), *callbacks], **kwargs)
        # The loss is the mean of each batch, so those of accumulated ones have to be divided by their number.
        self.model_accepts_loss_kwargs = False

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: Optional[list[str]] = None,
    ) -> tuple[Any, Any, Any]:
        """See `Trainer.prediction_step`; the predictions are embeddings `(batch, d)` in float32.

        Args:
            model: as there.
            inputs: as there.
            prediction_loss_only: as there; there is nothing then.
            ignore_keys: as there.
        """
        if prediction_loss_only:
            return None, None, None
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        others = [*(ignore_keys or ()), "loss", "logits", "hidden_states", "attentions"]
        embeddings: Any = super().prediction_step(model, inputs, False, others)[1]
        return None, embeddings.float(), labels.to(self.args.device)


class TellEpoch(TrainerCallback):
    """Tells the epoch to data sets that want to know it; the Trainer does so only where no sampler does."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell it."""
        dataset: Any = getattr(kwargs.get("train_dataloader"), "dataset", None)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))


def least_seconds(config: Any, grid: FrameGrid) -> float:
    """Return the length in seconds of the shortest clip that an x-vector head takes: it needs a deviation over time.

    Args:
        config: the model's configuration.
        grid: where the model's frames lie.
    """
    lost = sum(
        (kernel - 1) * dilation for kernel, dilation in zip(config.tdnn_kernel, config.tdnn_dilation, strict=True)
    )
    return grid.window + (lost + 1) * grid.hop
