"""The Trainer with what the papers need: their optimizers, schedules by epoch, soft targets, scores of several cuts."""

import functools
import math

import numpy as np
import torch
from sklearn.metrics import accuracy_score
from speaker_verification import EmbeddingTrainer, averaged
from torch import nn
from training.optimizers import make_optimizer
from training.schedules import epoch_steps

from peft_audio.losses import classification_loss
from peft_audio.metrics import mean_average_precision
from peft_audio.trainer import logits_of

from .inputs import UNKNOWN
from .recipe import Recipe


class DivergedError(ValueError):
    """The outputs of a training are no numbers."""


class RecipeTrainer(EmbeddingTrainer):
    """A Trainer that trains and tests as a recipe says.

    Args:
        recipe: the recipe.
        kwargs: of the Trainer.
    """

    def __init__(self, recipe: Recipe, **kwargs) -> None:
        self.recipe = recipe
        loss = functools.partial(classification_loss, loss=recipe.loss)
        super().__init__(compute_loss_func=loss, prompts_from_clips=False, **kwargs)  # as in the papers

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = make_optimizer(
                model or self.model, learning_rate=self.recipe.learning_rate, **self.recipe.optimizer
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.lr_scheduler is None:
            steps = math.ceil(len(self.get_train_dataloader()) / self.args.gradient_accumulation_steps)
            never = {"start": self.recipe.epochs + 1, "stop": self.recipe.epochs + 1}
            self.lr_scheduler = epoch_steps(optimizer or self.optimizer, steps, **never | dict(self.recipe.schedule))
        return self.lr_scheduler


def finite(outputs: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Return a model's outputs. Raises `DivergedError` if they are no numbers: there is no result."""
    if not np.isfinite(outputs).all():
        raise DivergedError(
            f"{recipe.name}: the training has diverged, its outputs are NaN or infinite. Try a lower rate: "
            f"--set learning_rate={recipe.learning_rate / 10:g}."
        )
    return outputs


def metrics_of(recipe: Recipe):
    """The function that gives the metrics of logits `(cuts, labels)`; those of one clip are averaged first."""

    def compute(prediction) -> dict[str, float]:
        logits = averaged(finite(logits_of(prediction.predictions), recipe), recipe.test_segments)
        targets = prediction.label_ids[:: recipe.test_segments]
        if targets.ndim == 1:
            scores = {"accuracy": accuracy_score(targets, logits.argmax(axis=1))}
            one_hot = np.arange(logits.shape[1]) == targets[:, None]
            return scores | {"map": mean_average_precision(logits, one_hot)}
        if recipe.metric == "accuracy":
            return {"accuracy": accuracy_score(targets.argmax(axis=1), logits.argmax(axis=1))}
        return {"map": mean_average_precision(logits, np.where(targets == UNKNOWN, np.nan, targets))}

    return compute
