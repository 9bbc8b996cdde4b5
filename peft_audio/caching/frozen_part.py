"""The frozen part of a model as it was when its states were computed, and whether it still is.

Changes are noticed in three ways, the cheapest first:

1. Before each batch of states: something trains, or torch's count of in-place changes or the place in memory of a frozen
   parameter or buffer is another one. Then all values are read.
2. torch counts no change through `Tensor.data`, NumPy or a pointer, and says nothing of hooks and attributes. So all of them
   are read again: up to `SMALL_BYTES` before every batch; above, before the first batch, before the first one in another
   mode, and at other times as often as `CHECK_SHARE` allows. Until then, for `1 / CHECK_SHARE` times as long as reading
   takes, such a change goes unnoticed.
3. What has another setting, attribute, function or hook may compute the same. A sample tells.
"""

from __future__ import annotations

from collections.abc import Collection
from time import perf_counter
from typing import Any, Optional

import torch
from torch import nn
from transformers import PreTrainedModel

from ..backbones.table import resolve
from ..tuner.encoder_layer import EncoderTunerLayer
from ..tuner.tuner_layer import keep_frozen_statistics
from ..upstream.hooks import HOOKS
from ..upstream.peft_modules import is_adapted
from ..upstream.torch_tensors import version_of
from ..upstream.transformers_models import attention_implementation
from ..utils.undisturbed import undisturbed
from .checks import check_deterministic, is_same_sample, states_at
from .side_split import modules_beside, tuner_layers
from .split_point import SplitPoint, frozen_modules
from .store import autocast_dtype, config_of, digest_of


CHECK_SHARE = 0.03  # of the time of a run that may go into reading the frozen part again
SMALL_BYTES = 4 * 2**20  # are read in about a millisecond
SIMPLE = (bool, int, float, str, tuple, torch.dtype, type(None))


class FrozenPart:
    """What cached states were computed by: the values before the split point, and what is done with them.

    Args:
        model: in evaluation mode, with autocast as it was for the states.
        split_point: where its frozen part ends.
        digest: of the values, see `digest_of`.
        inputs: a batch of some samples.
        states: what enters the split point for them.
        deterministic: whether it is accepted that the frozen part computes something else in training mode.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        split_point: SplitPoint,
        digest: str,
        inputs: dict[str, torch.Tensor],
        states: torch.Tensor,
        deterministic: bool,
    ) -> None:
        self.split_point = split_point
        self.digest = digest
        self._inputs = inputs
        self._states = states
        self._deterministic = deterministic
        self._autocast = autocast_dtype(model)
        self._computation: Optional[list[Any]] = None
        self._stamp: Optional[list[tuple[int, int]]] = None  # of the last check
        self._mode = model.training
        self._next_check = 0.0

    def __getstate__(self) -> dict[str, Any]:
        # A copy has other memory and functions, and perhaps another clock.
        return {**vars(self), "_computation": None, "_stamp": None, "_next_check": 0.0}

    def accept(self, model: PreTrainedModel) -> None:
        """Take it that the model computes now what it did for the states, after a wrapper was put around it."""
        self._computation = computation_of(model, self.split_point)

    def check(self, model: PreTrainedModel) -> None:
        """Check that the frozen part is what it was, as thoroughly as is due.

        Raises:
            RuntimeError: it is not, something in it trains, or it is sharded.
        """
        stamp, start = _stamp(model, self.split_point), perf_counter()
        if stamp == self._stamp and model.training == self._mode and start < self._next_check:
            return
        # Moving a model to a device, or loading its own weights again, changes the stamp and no value.
        if digest_of(model, self.split_point.after) != self.digest:
            raise RuntimeError(
                f"Weights or buffers of the frozen part of {type(model).__name__} (before {self.split_point.path!r}) "
                "have changed since the states were computed. Call cache_frozen again."
            )
        computation = computation_of(model, self.split_point)
        self._next_check = self._after_check(model, start)
        if computation != self._computation:
            self._check_sample(model)
            self._computation = computation
        self._stamp, self._mode = _stamp(model, self.split_point), model.training

    def _after_check(self, model: nn.Module, start: float) -> float:
        """Return when the next check is due, after one that began at `start` and ends now."""
        is_small = frozen_bytes(model, self.split_point.after) <= SMALL_BYTES
        return 0.0 if is_small else start + (perf_counter() - start) / CHECK_SHARE

    def is_unchanged(self, model: PreTrainedModel) -> bool:
        """Whether the frozen part is what it was, after a check of everything."""
        self._next_check = 0.0
        try:
            self.check(model)
        except RuntimeError:
            return False
        return True

    def _check_sample(self, model: PreTrainedModel) -> None:
        device = next(model.parameters()).device
        inputs = {name: value.to(device) for name, value in self._inputs.items()}
        coarser = self._autocast or autocast_dtype(model)  # Accelerate goes around the model with its own
        autocast = torch.autocast(device.type, self._autocast, enabled=self._autocast is not None)
        with torch.no_grad(), undisturbed(model), autocast:
            model.eval()
            if not is_same_sample(states_at(model, self.split_point, inputs), self._states, coarser):
                raise RuntimeError(
                    f"The frozen part of {type(model).__name__} (before {self.split_point.path!r}) has the weights of "
                    "when the states were computed, but computes something else now: a hook, a function, a module or an "
                    "attribute of one has changed. Undo that, or call cache_frozen again with another folder."
                )
            if not self._deterministic:
                self._check_deterministic(model, inputs)

    def _check_deterministic(self, model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
        def train() -> None:
            # Adapters of this package keep frozen batch norms so; had they followed the data, buffers would have changed.
            keep_frozen_statistics(model.train())

        try:
            check_deterministic(train, model, self.split_point, inputs)
        except ValueError as error:
            raise RuntimeError(f"{error} It did not when the states were computed.") from None


def computation_of(model: PreTrainedModel, split_point: SplitPoint) -> list[Any]:
    """Return what the frozen part does with its values, as far as it can be seen: settings, classes, functions, hooks."""
    seen: list[Any] = [config_of(model), attention_implementation(model.config)]
    for path, module in frozen_modules(model, split_point.after):
        seen += [path, type(module), *(tuple(getattr(module, name)) for name in HOOKS)]
        for name, value in vars(module).items():
            if name != "training" and (isinstance(value, SIMPLE) or callable(value)):
                seen += [name, repr(value) if isinstance(value, float) else value]  # nan is not what it was
    return seen


def frozen_bytes(model: nn.Module, after: Collection[str]) -> int:
    """Return the size of all frozen parameters and buffers."""
    modules = [module for _, module in frozen_modules(model, after)]
    tensors = [tensor for m in modules for tensor in (*m.parameters(recurse=False), *m.buffers(recurse=False))]
    return sum(tensor.nbytes for tensor in tensors)


def _stamp(model: nn.Module, split_point: SplitPoint) -> list[tuple[int, int]]:
    """Return numbers of which some change when torch changes a frozen parameter or buffer.

    Raises:
        RuntimeError: something trains before the split point.
    """
    stamp = []
    if split_point.taken and set(modules_beside(tuner_layers(model, resolve(model)))) != split_point.beside:
        raise RuntimeError(
            "Another adapter is active now than when the states were computed, or none, and its side network may read other "
            "layers. Activate that one, or call cache_frozen again."
        )
    for path, module in frozen_modules(model, split_point.after):
        parameters = list(module.parameters(recurse=False))
        is_within = is_adapted(module) and not (split_point.taken and isinstance(module, EncoderTunerLayer))
        if is_within or any(parameter.requires_grad for parameter in parameters):
            raise RuntimeError(
                f"{path!r} trains now, or has an active adapter, and runs before {split_point.path!r}, where the cached "
                "states go in. Freeze it, or call cache_frozen again."
            )
        tensors = [*parameters, *module.buffers(recurse=False)]
        stamp += [(tensor.data_ptr(), version_of(tensor)) for tensor in tensors]
    return stamp
