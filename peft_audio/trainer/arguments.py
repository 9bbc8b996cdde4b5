"""The Trainer's arguments, with defaults for adapting an audio model to a small data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from ..utils.ranges import check_ranges
from .argument_checks import RANGES


def _argument(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass
class SmallDataArguments(TrainingArguments):
    """`TrainingArguments` with other defaults, and the head's learning rate.

    Args:
        head_learning_rate (`float`, *optional*): of the model's head; None for `learning_rate`.

    Raises:
        ValueError: a number is out of its range, or arguments do not fit together.
    """

    num_train_epochs: float = _argument(15, "Number of training epochs.")
    per_device_train_batch_size: int = _argument(16, "Training clips a step and device.")
    per_device_eval_batch_size: int = _argument(32, "Evaluation clips a step and device.")
    learning_rate: Optional[float] = _argument(None, "The method's own if left out.")  # type: ignore[assignment] # filled in
    head_learning_rate: Optional[float] = _argument(None, "Of the head; the method's own if left out.")
    lr_scheduler_type: str = _argument("cosine", "The learning rate's schedule.")
    warmup_steps: float = _argument(0.1, "Warm-up: steps, or (below 1) share of all steps.")
    eval_strategy: str = _argument("epoch", "When to evaluate: no, epoch or steps.")
    logging_strategy: str = _argument("epoch", "When to log: no, epoch or steps.")
    save_strategy: str = _argument("epoch", "When to write checkpoints: no, epoch or steps.")
    save_total_limit: Optional[int] = _argument(1, "Checkpoints kept.")
    report_to: Optional[str] = _argument("none", "Where to log besides, e.g. tensorboard.")
    hub_strategy: str = _argument("end", "When to push to the Hub, with --push_to_hub.")
    dataloader_pin_memory: bool = _argument(torch.accelerator.is_available(), "Pin memory, for an accelerator.")
    label_names: Optional[list[str]] = field(
        default_factory=lambda: ["labels"], metadata={"help": "The columns with the labels."}
    )
    remove_unused_columns: bool = _argument(False, "Leave out columns that are no arguments of the model.")
    # Else the Trainer shows the mean of the losses that are numbers, and what went wrong stays unknown.
    logging_nan_inf_filter: bool = _argument(False, "Leave losses that are no numbers out of the logged ones.")

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        super().__post_init__()


@dataclass
class AudioTrainingArguments(SmallDataArguments):
    """`TrainingArguments` with other defaults, and what `AudioTrainer` takes besides.

    Args:
        compare_with_probe (`bool`): whether a training script also tests a linear probe on the frozen model's features.

    Raises:
        ValueError: a number is out of its range, or arguments do not fit together.
    """

    compare_with_probe: bool = _argument(True, "Also test a linear probe on the frozen model's features.")


@dataclass
class SpeechTrainingArguments(SmallDataArguments, Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` with the defaults of `AudioTrainingArguments`, for `SpeechTrainer`.

    Raises:
        ValueError: a number is out of its range, or arguments do not fit together.
    """
