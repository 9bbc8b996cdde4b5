"""The folders in which transformers' Trainer keeps its checkpoints.

Relied upon: the start of their names, and that the Trainer writes its state, with the number of steps, as the last
file of a checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


FOLDER_PREFIX: str = PREFIX_CHECKPOINT_DIR
# As in transformers.trainer, which is slow to import.
STATE_NAME = "trainer_state.json"


def step_of_state(checkpoint: Path) -> Optional[int]:
    """Return the number of steps in the state of a Trainer's checkpoint, None without a state that can be read."""
    try:
        step = TrainerState.load_from_json(str(checkpoint / STATE_NAME)).global_step
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    return step if isinstance(step, int) else None
