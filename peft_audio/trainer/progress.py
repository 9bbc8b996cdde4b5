"""One live line while a model trains, and where everything is when it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

from transformers import ProgressCallback, Trainer


# What files of a training's folder are, in the order in which they are told; the others are not told.
FILES = {
    "adapter_model.safetensors": "the adapter",
    "model.safetensors": "the model",
    "README.md": "the model card",
    "all_results.json": "all numbers",
    "curves.png": "loss and metrics by epoch",
    "transcriptions.csv": "what was said, and what was recognized",
}


class ProgressLine(ProgressCallback):
    """The Trainer's progress bar, which says the loss and the metrics so far in its own line, beside the time left.

    The bar of transformers writes a line of its own for each log, and has a second bar for each evaluation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, str] = {}

    def on_prediction_step(self, args: Any, state: Any, control: Any, *rest: Any, **kwargs: Any) -> None:
        """Show a bar for an evaluation only where none is shown for a training."""
        if self.training_bar is None:
            super().on_prediction_step(args, state, control, *rest, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Optional[Mapping] = None, **kwargs: Any) -> None:
        """Show the latest loss, and the loss and metrics of the latest evaluation."""
        if not state.is_world_process_zero or self.training_bar is None:
            return
        for name, value in (logs or {}).items():
            metric = name.removeprefix("eval_")
            is_told = name == "loss" or (metric != name and not metric.endswith(("runtime", "per_second")))
            if is_told and isinstance(value, float):
                self.shown["eval loss" if name == "eval_loss" else metric] = f"{value:.3g}"
        self.training_bar.set_postfix(self.shown)


def install_progress_line(trainer: Trainer) -> None:
    """Put `ProgressLine` in the place of the bar that transformers gives a Trainer, unless it has another or none."""
    if any(type(callback) is ProgressCallback for callback in trainer.callback_handler.callbacks):
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ProgressLine)


def what_was_saved(folder: Union[str, Path]) -> str:
    """Return lines that say where a training's results are, one a file, with sizes.

    Args:
        folder: of the training.
    """
    there = [(Path(folder) / name, meaning) for name, meaning in FILES.items() if (Path(folder) / name).exists()]
    sizes = [f"{path}: {meaning}, {_size(path.stat().st_size)}" for path, meaning in there]
    return "\n".join(sizes)


def _size(number: int) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 1e6 else f"{-(-number // 1000)} KB"
