"""The modules that an adapter trains whole, such as the head: their copies by sample, their dtype, their names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from types import SimpleNamespace
from typing import Any, Optional

import torch
from peft.utils import set_additional_trainable_modules
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..config import EXACT, EncoderAdapterConfig
from ..upstream.peft_modules import copy_of, trained_modules
from ..utils.around import owners_of_wrappers, wrap_forward
from ..utils.forward_pass import ForwardPass
from .mixed_batch import size_of
from .samples import join, take


ALONE = EXACT + "module"  # a name that no module inside of another ends in
HALF = (torch.float16, torch.bfloat16)


class TrainedModule:
    """A wrapper around what PEFT puts around a module that is trained whole.

    In a mixed batch, each adapter's copy gets its own samples. A copy that trains in float32 beside a base model in half
    precision gets its input in float32, and its output goes on in the model's precision.

    Args:
        forward_pass: the state of the model's forward passes.
    """

    def __init__(self, forward_pass: ForwardPass) -> None:
        self.forward_pass = forward_pass

    def run(
        self, forward: Callable[..., Any], module: AuxiliaryTrainingWrapper, args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        """Run the module."""
        samples = self.forward_pass.current.samples
        if module.disable_adapters:
            return forward(*args, **kwargs)
        if samples is None:
            active = next((name for name in module.active_adapters if name in module._adapters), None)
            return self._run(copy_of(module, active), forward, args, kwargs)
        if len(samples) == 1:
            copied = copy_of(module, next(iter(samples)))
            return self._run(copied, copied, args, kwargs)
        outputs = []
        for name, indices in samples.items():
            rows, named = take((args, kwargs), indices, size_of(samples))
            copied = copy_of(module, name)
            outputs.append(self._run(copied, copied, rows, named))
        return join(outputs, list(samples.values()), "output")

    def _run(self, copied: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        given = _dtype_of(args)
        wanted = _dtype_of(copied.parameters())
        if given is None or wanted is None or given == wanted or given not in HALF or _is_autocast(args):
            return forward(*args, **kwargs)
        output = forward(*_converted(args, given, wanted), **_converted(kwargs, given, wanted))
        return _converted(output, wanted, given)


def install_trained_modules(model: nn.Module) -> None:
    """Put `TrainedModule` around every module that PEFT wraps, unless it is there."""
    for _, module in trained_modules(model):
        if not any(isinstance(owner, TrainedModule) for owner in owners_of_wrappers(module)):
            wrap_forward(module, TrainedModule(ForwardPass.of(model)).run)


def train_in_float32(modules: Iterable[AuxiliaryTrainingWrapper], adapter_name: str) -> None:
    """Bring the adapter's copies from half precision to float32, in which small steps of training are not lost."""
    for module in modules:
        if adapter_name in module._adapters:
            for parameter in copy_of(module, adapter_name).parameters():
                if parameter.dtype in HALF:
                    parameter.data = parameter.data.to(torch.float32)


def unambiguous(names: list[str], model: nn.Module) -> list[str]:
    """Return names of modules by which PEFT finds those modules and no others, and marked paths, which it does not find.

    PEFT takes every module whose path ends in the name, `patch_embeddings` for "embeddings". Here a name is a path, or
    else the last step of paths, or several.
    """
    paths = [path for path, _ in model.named_modules() if path]
    result: list[str] = []
    for name in names:
        meant = [name] if name in paths else [path for path in paths if path.endswith(f".{name}")]
        if name.startswith(EXACT) or not meant or meant == [path for path in paths if path.endswith(name)]:
            result.append(name)
        else:
            result += [path if sum(other.endswith(path) for other in paths) == 1 else EXACT + path for path in meant]
    return result


def paths_of(names: Collection[str], model: nn.Module) -> list[str]:
    """Return the paths of the modules that unambiguous names are of."""
    exact = {name.removeprefix(EXACT) for name in names if name.startswith(EXACT)}
    ends = tuple(name for name in names if not name.startswith(EXACT))
    return [path for path, _ in model.named_modules() if path in exact or path.endswith(ends)]


def train_marked(model: nn.Module, config: EncoderAdapterConfig, adapter_name: str, activate: bool) -> None:
    """Have PEFT wrap the modules whose marked paths it does not find by itself, each as the only module of another."""
    for path in (name.removeprefix(EXACT) for name in config.modules_to_save or () if name.startswith(EXACT)):
        parent, _, name = path.rpartition(".")
        around = nn.ModuleDict({ALONE: model.get_submodule(path)})
        alone = SimpleNamespace(modules_to_save=[ALONE], inference_mode=config.inference_mode)
        set_additional_trainable_modules(around, alone, {}, adapter_name, activate_adapter=activate)
        setattr(model.get_submodule(parent), name, around[ALONE])


def _dtype_of(tensors: Iterable[Any]) -> Optional[torch.dtype]:
    """Return the dtype of the first floating point tensor, None without one."""
    return next((t.dtype for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point()), None)


def _is_autocast(args: tuple) -> bool:
    devices = {value.device.type for value in args if isinstance(value, torch.Tensor)}
    return any(torch.is_autocast_enabled(device) for device in devices)


def _converted(value: Any, old: torch.dtype, new: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(new) if value.dtype == old else value
    if isinstance(value, dict):
        return {key: _converted(item, old, new) for key, item in value.items()}
    return type(value)(_converted(item, old, new) for item in value) if type(value) in (tuple, list) else value
