"""What a training script checks before it reads data: numbers, folders, names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional, Union

from peft import PeftConfig

from ..checkpoints.trainer_checkpoints import last_complete_checkpoint
from ..utils.arguments import UsageError
from ..utils.ranges import COUNT, SEED, Range


# Of the Trainer's arguments, those that the Trainer checks late or never.
RANGES: Mapping[str, Range] = {
    **dict.fromkeys(("weight_decay", "max_grad_norm", "adam_epsilon"), Range()),
    **dict.fromkeys(("warmup_steps", "save_steps", "logging_steps"), Range()),
    **dict.fromkeys(("learning_rate", "head_learning_rate", "eval_steps"), Range(optional=True)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), Range(0, 1, below=True)),
    "seed": SEED,
    "data_seed": replace(SEED, optional=True),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), COUNT),
    "gradient_accumulation_steps": COUNT,
    "label_smoothing_factor": Range(0, 1),
    "num_train_epochs": Range(0, COUNT.high),
    "max_steps": Range(-1, 2**31, whole=True),
    "dataloader_num_workers": Range(0, 1024, whole=True),  # processes
    "save_total_limit": Range(0, COUNT.high, whole=True, optional=True),
}


def check_model_folder(name: str, folder: str) -> None:
    """Check that the folder given as the argument `name`, if it is one and no name on the Hub, holds a model.

    Raises:
        UsageError: it is not there, or holds an adapter, or nothing of the kind.
    """
    path = Path(folder)
    if not path.is_dir():
        # No name on the Hub begins like that, and asking for it would end in an error about such names.
        if not path.is_file() and folder.startswith(("/", "./", "../", "~")):
            raise UsageError(f"{name} must be a pretrained model, got {folder!r}: there is no such folder.")
        return
    if (path / "config.json").is_file():
        return
    if (path / "adapter_config.json").is_file():
        base = PeftConfig.from_pretrained(folder).base_model_name_or_path
        raise UsageError(
            f"{name} must be a pretrained model, got the adapter {folder!r}. Give its base model, {base!r}."
        )
    raise UsageError(f"{name} must be a pretrained model, got {folder!r}, a folder without config.json.")


def check_metric(args: Any, names: Iterable[str]) -> None:
    """Check that the metric which chooses the best checkpoint is one of `names` (without "eval_"), or the loss.

    Args:
        args: the Trainer's arguments.
        names: of the metrics.

    Raises:
        ValueError: it is none of them.
    """
    known, wanted = ["loss", *names], args.metric_for_best_model
    if wanted is None and str(getattr(args.save_strategy, "value", args.save_strategy)) != "best":
        return
    if wanted is None or wanted.removeprefix("eval_") not in known:
        raise ValueError(f"metric_for_best_model must be one of {', '.join(known)}, got {wanted!r}.")


def checkpoint_to_resume(resume_from_checkpoint: Union[str, bool, None], output_dir: Optional[str]) -> Optional[str]:
    """Return the folder of the checkpoint to go on from, None for a new start.

    Args:
        resume_from_checkpoint: the folder, or True (or "True", "last") for the last complete one in `output_dir`.
        output_dir: of the Trainer.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    wanted, folder = str(resume_from_checkpoint or False), str(output_dir)
    if wanted.lower() == "false":
        return None
    found = last_complete_checkpoint(folder) if wanted.lower() in ("true", "last") else wanted
    if found is None or not Path(found).is_dir():
        raise FileNotFoundError(
            f"resume_from_checkpoint {wanted}: no such checkpoint. Give a checkpoint-N folder, or True for the last one in "
            f"{folder}."
        )
    return str(found)
