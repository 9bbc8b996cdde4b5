"""A Trainer whose checkpoints of whole models can be gone on from."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


class CheckpointingTrainer(Trainer):
    """The Trainer, with checkpoints under the names that the model has for its tensors.

    transformers saves some models (AST) under the names of older releases. Its `from_pretrained` knows them, its Trainer
    does not: resuming, or loading the best model, would leave most of the weights as they happen to be. The model that
    is saved in the end keeps the names of its published form.
    """

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        is_checkpoint = output_dir is not None and Path(output_dir).name.startswith(PREFIX_CHECKPOINT_DIR)
        is_whole = isinstance(self.model, PreTrainedModel)
        with own_names(self.model) if is_checkpoint and is_whole else nullcontext():
            super()._save(output_dir, state_dict)


@contextmanager
def own_names(model: PreTrainedModel) -> Iterator[None]:
    """Within, `model.save_pretrained` keeps the model's own names."""
    model.save_pretrained = functools.partial(model.save_pretrained, save_original_format=False)
    try:
        yield
    finally:
        del model.save_pretrained
