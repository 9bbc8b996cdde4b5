"""The average of the weights at the ends of several epochs, as AST takes it for its result on AudioSet."""

import logging
import os
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.optim.swa_utils import get_swa_avg_fn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


logger = logging.getLogger(__name__)

FILE_NAME = "weight_average.safetensors"


class WeightAveraging(TrainerCallback, ExportableState):
    """Averages what trains over the ends of the epochs first..last, and puts it into the model when training ends.

    Averaged are the parameters that require gradients, and the floating-point buffers of their modules (the running
    statistics of a batch norm), so adapters of PEFT as well as whole models. What is saved or evaluated after
    `Trainer.train` is the average; checkpoints hold the weights as they were, and the average so far beside them, in
    weight_average.safetensors. A resumed run goes on with it.

    Args:
        first: the first epoch, from 1. AST averages the epochs 1 to 5 of AudioSet, 6 to 25 of its balanced part.
        last: the last one; the last of the training if left out.

    Raises (when training starts):
        ValueError: the epochs do not fit the training or each other, `load_best_model_at_end` would load other weights,
            the model is sharded, or the checkpoint to go on from lacks the average.
    """

    def __init__(self, first: int, last: int | None = None):
        if first < 1 or (last is not None and last < first):
            raise ValueError(f"The epochs to average must be 1 or more and in order, got first={first}, last={last}.")
        self.first, self.last = first, last
        self.average, self.count = {}, 0
        self.run = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.run, self.average, self.count = (args, state), {}, 0
        last = self.end(state)
        if not self.first <= last <= state.num_train_epochs:
            raise ValueError(
                f"The epochs to average are {self.first} to {last}, but training has {state.num_train_epochs}: set "
                "first and last within them."
            )
        if args.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end and the average each want to be the result: turn one of them off."
            )
        if PartialState().distributed_type.value in ("FSDP", "DEEPSPEED"):
            raise ValueError("Weights that are sharded (FSDP, DeepSpeed) cannot be averaged: train with DDP.")
        # The Trainer looks itself up here, also when the checkpoint was written by a run without it.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        averaged = min(int(state.epoch or 0), last) - self.first + 1
        if state.global_step > 0 and averaged > 0:
            self.read(self.file, trained_tensors(model), averaged)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        # At the last step of the epoch, not in on_epoch_end: a checkpoint may be written in between.
        if state.epoch == int(state.epoch) and self.first <= state.epoch <= self.end(state):
            self.update(trained_tensors(model))

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if not self.count:
            logger.warning("Training ended before epoch %d did: no weights were averaged.", self.first)
            return
        with torch.no_grad():
            for name, tensor in trained_tensors(model).items():
                tensor.copy_(self.average[name])
        missing = self.end(state) - self.first + 1 - self.count
        level = logging.WARNING if missing else logging.INFO
        logger.log(level, "The weights are the average over %d epochs; %d are missing.", self.count, missing)

    def end(self, state) -> int:
        return state.num_train_epochs if self.last is None else self.last

    def state(self) -> dict:
        """What trainer_state.json records; writes the average into the checkpoint's folder."""
        # The Trainer asks for it just before it writes that file, which makes a checkpoint complete. (on_save comes
        # too late: a process that is killed before it would leave a checkpoint without its average.)
        if self.count and self.file.parent.is_dir():
            self.write(self.file)
        return {"args": {"first": self.first, "last": self.last}, "attributes": {}}

    @property
    def file(self) -> Path:
        args, state = self.run
        return Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", FILE_NAME)

    @torch.no_grad()
    def update(self, tensors: dict[str, torch.Tensor]) -> None:
        """Adds these to the average, which is kept in float32 or better and in main memory."""
        mean_with = get_swa_avg_fn()
        for name, tensor in tensors.items():
            new = tensor.detach().to("cpu", torch.promote_types(tensor.dtype, torch.float32), copy=True)
            self.average[name] = mean_with(self.average[name], new, self.count) if self.count else new
        self.count += 1

    def write(self, path: Path) -> None:
        """Writes the average so that `path` is a complete file, the old one or the new one."""
        partial = path.with_name(f"{path.name}.partial")
        tensors = {name: tensor.contiguous() for name, tensor in self.average.items()}
        save_file(tensors, partial, metadata={"first": str(self.first), "count": str(self.count)})
        os.replace(partial, path)

    def read(self, path: Path, tensors: dict[str, torch.Tensor], count: int) -> None:
        """Takes the average over `count` epochs from `path`; it must fit `tensors`.

        Raises:
            ValueError: there is no such file, it is damaged, of other epochs, or of another model.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata, names = file.metadata() or {}, file.keys()
                average = {name: file.get_tensor(name) for name in names}
        except FileNotFoundError:
            raise ValueError(
                f"{path}: not found. The checkpoint lies within the epochs to average, so their average so far is "
                "needed. Go on from a checkpoint of a run that averages too; if it is in another folder than "
                "output_dir, copy the file here."
            ) from None
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged ({error}). Go on from another checkpoint.") from None
        found, wanted = metadata.get("first"), str(self.first)
        if (found, metadata.get("count")) != (wanted, str(count)):
            raise ValueError(
                f"{path}: is the average of {metadata.get('count')} epochs from {found} on, {count} from {wanted} on are "
                "needed. Give first and last as in the run that wrote it."
            )
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        for name in sorted(shapes.keys() | average.keys()):
            if name not in average or name not in shapes or average[name].shape != shapes[name]:
                raise ValueError(f"{path}: {name} is missing or of another shape there or in the model that trains.")
        self.average, self.count = average, count


def trained_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """By name, the parameters that require gradients and the floating-point buffers of the modules that own them."""
    tensors = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for prefix, module in model.named_modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            for name, buffer in module.named_buffers(prefix, recurse=False):
                if buffer.is_floating_point():
                    tensors[name] = buffer
    return tensors
