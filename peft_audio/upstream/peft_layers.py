"""What of PEFT's own layers is read: which modules they are, and which adapters they hold."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


def has_adapters(model: Any) -> bool:
    """Whether there are adapters on the model, of any tuner type."""
    return isinstance(model, nn.Module) and any(isinstance(module, BaseTunerLayer) for module in model.modules())


def adapter_names(layer: BaseTunerLayer) -> set[str]:
    """Return the names of all adapters that a tuner layer holds, active or not."""
    return set(layer._all_available_adapter_names())


def is_adapted(module: nn.Module) -> bool:
    """Whether the module is a tuner layer with an active adapter, or PEFT's wrapper around a trained head."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        return True
    if not isinstance(module, BaseTunerLayer) or module.disable_adapters:
        return False
    return not adapter_names(module).isdisjoint(module.active_adapters)
