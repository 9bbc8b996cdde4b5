"""Finding the Trainer checkpoint from which training can resume."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Optional, Union

from ..upstream.trainer_checkpoints import FOLDER_PREFIX, step_of_state


def last_complete_checkpoint(output_dir: Union[str, os.PathLike]) -> Optional[str]:
    """Return the newest complete checkpoint in a Trainer's output folder.

    `Trainer.train(resume_from_checkpoint=True)` takes the newest checkpoint, complete or not. If the process was killed
    while it wrote that checkpoint, training cannot resume from it. Pass this one instead.

    Args:
        output_dir: `TrainingArguments.output_dir`. It need not exist yet.

    Returns:
        The checkpoint's folder, or None if there is no complete one: training then starts from the beginning.

    Examples:
        >>> TrainerState(global_step=10).save_to_json("checkpoint-10/trainer_state.json")
        >>> Path("checkpoint-20").mkdir()  # the process was killed before it wrote the Trainer's state
        >>> peft_audio.last_complete_checkpoint(".")
        'checkpoint-10'
    """
    folders = [path for path in Path(output_dir).glob(f"{FOLDER_PREFIX}-*") if path.is_dir()]
    numbered = [(int(match[1]), path) for path in folders if (match := re.search(r"-(\d+)$", path.name))]
    # The Trainer writes its state last, so a checkpoint with the state of its step is complete.
    complete = (str(path) for step, path in sorted(numbered, reverse=True) if step_of_state(path) == step)
    return next(complete, None)
