"""What the Trainers of this package do besides those of transformers, whatever the task."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Optional, Union
from unittest import mock

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from ..backbones.module_names import head_modules
from ..tuner.prompt_start import has_untrained_prompts, initialize_prompts
from ..utils.validation import require
from .argument_checks import checkpoint_to_resume
from .checks import GradientCheck, ProgressCheck
from .progress import install_progress_line


NUM_CLIPS = 16  # whose tokens prompts start as

logger = logging.getLogger(__name__)


class AdapterTraining(Trainer):
    """A Trainer whose head has a learning rate of its own, and whose prompts start as tokens of training clips.

    - Checkpoints of whole models have the names that the model has for its tensors. transformers saves some models (AST)
      under the names of older releases. Its `from_pretrained` knows them, its Trainer does not: resuming, or loading the
      best model, would leave most of the weights as they happen to be. The model that is saved in the end keeps the
      names of its published form.
    - `GradientCheck` and `ProgressCheck` are among its callbacks, and `ProgressLine` takes the place of the Trainer's bar.

    Args:
        model: as for the Trainer.
        args: as for the Trainer.
        head_learning_rate: learning rate of the model's head, whose schedule is that of the others; None for that of
            the arguments or, without, `args.learning_rate`. A new head can take, and needs for few clips, ten times an
            adapter's.
        prompts_from_clips: let prompts that were not trained yet start as tokens of training clips, see
            `peft_audio.initialize_prompts`. False: as they were drawn, which is the papers' way.
        callbacks: as for the Trainer.
        kwargs: further arguments of the Trainer.
    """

    def __init__(
        self,
        model: Optional[nn.Module] = None,
        args: Optional[TrainingArguments] = None,
        *,
        head_learning_rate: Optional[float] = None,
        prompts_from_clips: bool = True,
        callbacks: Iterable[TrainerCallback] = (),
        **kwargs: Any,
    ) -> None:
        callbacks = [GradientCheck(), ProgressCheck(), *callbacks]
        self.prompts_from_clips = prompts_from_clips
        self.head_learning_rate = head_learning_rate or getattr(args, "head_learning_rate", None)
        super().__init__(model, args, callbacks=callbacks, **kwargs)
        install_progress_line(self)

    def create_optimizer(self, model: Optional[nn.Module] = None) -> torch.optim.Optimizer:
        """See `Trainer.create_optimizer`; the head's parameters get groups of their own.

        Args:
            model: as for the Trainer.

        Raises:
            ValueError: there is no learning rate; or `head_learning_rate` is given, and the model's type is not supported.
        """
        is_new = self.optimizer is None
        rule = (
            "a number for a Trainer; None leaves it to the training scripts, which take METHODS[method].learning_rate"
        )
        require(not is_new or self.args.learning_rate is not None, "learning_rate", rule, None)
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        if is_new and self.head_learning_rate is not None:
            give_own_rate(optimizer, _head_parameters(self.model), self.head_learning_rate)
        return optimizer

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
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        if checkpoint is None:
            self._start_prompts()
        return super().train(checkpoint, trial, ignore_keys_for_eval)

    def _start_prompts(self) -> None:
        """Let prompts that were not trained yet start as tokens of training clips, see `initialize_prompts`."""
        model: Any = self.model
        dataset: Any = self.train_dataset
        if not self.prompts_from_clips or model is None or dataset is None or not has_untrained_prompts(model):
            return
        if hasattr(dataset, "__len__"):
            number = min(NUM_CLIPS, len(dataset))
            clips = [dataset[index * len(dataset) // number] for index in range(number)]
        else:
            clips = list(islice(dataset, NUM_CLIPS))
        inputs = self.data_collator(clips)
        device = next(model.parameters()).device
        initialize_prompts(model, {name: value.to(device) for name, value in inputs.items()})
        logger.info("The prompts start as tokens of %d training clips (prompts_from_clips).", len(clips))

    def save_model(self, output_dir: Optional[str] = None, _internal_call: bool = False) -> None:
        """See `Trainer.save_model`."""
        is_checkpoint = output_dir is not None and Path(output_dir).name.startswith(PREFIX_CHECKPOINT_DIR)
        if not (is_checkpoint and isinstance(self.model, PreTrainedModel)):
            return super().save_model(output_dir, _internal_call)
        save = functools.partial(self.model.save_pretrained, save_original_format=False)
        with mock.patch.object(self.model, "save_pretrained", save):
            return super().save_model(output_dir, _internal_call)


def give_own_rate(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], learning_rate: float) -> None:
    """Give some of an optimizer's parameters another learning rate, in groups of their own with the same settings.

    Args:
        optimizer: that has made no step yet.
        parameters: some of its parameters.
        learning_rate: theirs.
    """
    chosen = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if id(parameter) in chosen]
        others = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        if own and others:
            group["params"] = others
            settings = {name: value for name, value in group.items() if name != "params"}
            optimizer.add_param_group({**settings, "params": own, "lr": learning_rate})
        elif own:
            group["lr"] = learning_rate


def _head_parameters(model: Any) -> list[nn.Parameter]:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return [parameter for name in head_modules(base) for parameter in base.get_submodule(name).parameters()]
