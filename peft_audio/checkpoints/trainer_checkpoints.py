"""Finding the checkpoint of a Trainer that training can go on from."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Optional, Union

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


STATE_NAME = "trainer_state.json"


def last_complete_checkpoint(output_dir: Union[str, os.PathLike]) -> Optional[str]:
    """Return the newest checkpoint in the output folder of a Trainer that was written to its end, None without one.

    `Trainer.train(resume_from_checkpoint=True)` takes the newest, complete or not: a process that was killed while it
    wrote one cannot go on from there. Give it this one instead.

    Args:
        output_dir: `TrainingArguments.output_dir`.
    """
    folders = [path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    numbered = [(int(match[1]), path) for path in folders if (match := re.search(r"-(\d+)$", path.name))]
    return next((str(path) for step, path in sorted(numbered, reverse=True) if _is_complete(path, step)), None)


def _is_complete(checkpoint: Path, step: int) -> bool:
    # The Trainer writes its state last.
    try:
        return TrainerState.load_from_json(str(checkpoint / STATE_NAME)).global_step == step
    except (OSError, json.JSONDecodeError, TypeError, UnicodeDecodeError):
        return False
