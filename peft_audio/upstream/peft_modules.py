"""The modules that PEFT puts into a model: its tuner layers, and its wrappers of modules that are trained whole.

Relied upon: `AuxiliaryTrainingWrapper`, the base class of the wrappers around the modules of `modules_to_save`, with
its attribute `_adapters` and its methods `adapter_state_dict_load_map` and `set_requires_grad`; of `BaseTunerLayer`, its
method `_all_available_adapter_names`; and `_active_adapter` of both, which the methods that are documented cannot set
without changing which parameters ask for a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

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
    """Whether the module is a tuner layer with an active adapter, or PEFT's wrapper of a module that is trained whole."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        return True
    if not isinstance(module, BaseTunerLayer) or module.disable_adapters:
        return False
    return not adapter_names(module).isdisjoint(module.active_adapters)


def trained_modules(model: nn.Module) -> Iterator[tuple[str, AuxiliaryTrainingWrapper]]:
    """Yield the path and the wrapper of each module that adapters train whole, such as a classification head."""
    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            yield name, module


def adapters_of(module: AuxiliaryTrainingWrapper) -> set[str]:
    """Return the names of the adapters that have a copy of this module."""
    return set(module._adapters)


def copy_of(module: AuxiliaryTrainingWrapper, adapter_name: Optional[str]) -> nn.Module:
    """Return the adapter's copy of this module, the model's own where the adapter has none."""
    # A ModuleDict has no `get`.
    return module.modules_to_save[adapter_name] if adapter_name in module._adapters else module.original_module


def tensor_names(module: AuxiliaryTrainingWrapper, adapter_name: str) -> dict[str, str]:
    """Map the names of an adapter's tensors in a checkpoint to their names in the wrapper; empty for other adapters."""
    return module.adapter_state_dict_load_map(adapter_name)


def freeze_trained_modules(model: nn.Module, adapter_name: str) -> None:
    """Freeze the copies that the adapter has of modules that are trained whole."""
    for _, module in trained_modules(model):
        module.set_requires_grad(adapter_name, False)


@contextmanager
def only_adapter(model: nn.Module, adapter_name: Optional[str]) -> Iterator[None]:
    """Within, this adapter is the active one, in layers and heads; None: no adapter. Gradients are asked for as before."""
    modules: list[Any] = [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    before = [module._active_adapter for module in modules]
    for module in modules:
        # Not every adapter has a head of its own; layers take any name.
        has_it = not isinstance(module, AuxiliaryTrainingWrapper) or adapter_name in module._adapters
        module._active_adapter = [adapter_name] if has_it and adapter_name is not None else []
    try:
        yield
    finally:
        for module, active in zip(modules, before):
            module._active_adapter = active
