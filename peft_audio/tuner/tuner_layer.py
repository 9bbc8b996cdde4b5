"""What the tuner layers of this package share: one module wrapped, parts by adapter name, hooks that are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Optional, Union

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from ..checkpoints.adapter_labels import AdapterLabels
from ..modules import AdapterModule
from ..upstream.torch_modules import is_batch_norm
from ..utils.forward_pass import ForwardPass, PassState
from .samples import join, samples_by_adapter, take


class HookedTunerLayer(nn.Module, BaseTunerLayer):
    """Wraps one module of a backbone and owns what adapters train there.

    The parameters of part P of adapter A are found under `<prefix>P.A`.

    Args:
        base_layer: the module.
        prefix: prefix of the tuner type, which PEFT recognizes its parameters by.
        forward_pass: the state of the model's forward passes.
    """

    # The parts that hold parameters, in the order in which they act.
    parts: ClassVar[tuple[str, ...]] = ()
    is_in_decoder = False

    def __init__(self, base_layer: nn.Module, prefix: str, forward_pass: ForwardPass) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.training = base_layer.training
        self.forward_pass = forward_pass
        self.prefix = prefix
        self.adapter_layer_names = tuple(prefix + part for part in self.parts)
        for name in self.adapter_layer_names:
            self.add_module(name, nn.ModuleDict().train(self.training))
        self._active_adapter = []
        self.merged_adapters = []
        self._hooks: tuple[RemovableHandle, ...] = ()
        self._labels: Optional[AdapterLabels] = None

    def update_layer(self, adapter_name: str, modules: Any, inference_mode: bool = False) -> None:
        """Take in a new adapter, a module or None for each part; it becomes the active one if there was none."""
        for part in self.parts:
            module = getattr(modules, part)
            if module is not None:
                self.part(part)[adapter_name] = module.train(self.training)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters or [adapter_name], inference_mode=inference_mode)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen batch norms stay in evaluation mode, see `keep_frozen_statistics`."""
        super().train(mode)
        keep_frozen_statistics(self)
        return self

    def couple_labels(self, labels: AdapterLabels) -> None:
        """Switch the model's labels together with the adapters."""
        self._labels = labels

    def set_adapter(self, adapter_names: Union[str, list[str]], inference_mode: bool = False) -> None:
        """Make these adapters the active ones, and the model's labels theirs."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        if self._labels is not None:
            self._labels.activate([] if self.disable_adapters else self.active_adapters)

    @property
    def cast_input_dtype_enabled(self) -> bool:
        """Whether adapters bring their input to the dtype of their weights (`peft.helpers.disable_input_dtype_casting`)."""
        return all(module.cast_input_dtype_enabled for module in self._adapter_modules())

    @cast_input_dtype_enabled.setter
    def cast_input_dtype_enabled(self, enabled: bool) -> None:
        for module in self._adapter_modules():
            module.cast_input_dtype_enabled = enabled

    def _adapter_modules(self) -> Iterator[AdapterModule]:
        for part in self.parts:
            yield from (module for module in self.part(part).modules() if isinstance(module, AdapterModule))

    def _replicate_for_data_parallel(self) -> nn.Module:
        # Replicas share the hooks, which belong to the original: its adapters would act on every GPU's data at once.
        raise RuntimeError(
            "These adapters do not run in torch.nn.DataParallel, which the Trainer takes where one process sees several "
            "GPUs. Start one process per GPU instead, `accelerate launch --num_processes NUM_GPUS train.py` or "
            "`torchrun --nproc_per_node NUM_GPUS train.py`, or show the process one GPU with CUDA_VISIBLE_DEVICES=0."
        )

    def remove_hooks(self) -> None:
        """Give the base layer back as it was."""
        for hook in self._hooks:
            hook.remove()

    def part(self, part: str) -> nn.ModuleDict:
        """Return the modules of one part by adapter name."""
        return getattr(self, self.prefix + part)

    def active(self, part: str) -> list[tuple[str, nn.Module]]:
        """Return what the active adapters have for one part, with their names; nothing while adapters are disabled.

        In a mixed batch, those of all its samples, and within `by_adapter` that of the samples at hand.
        """
        if self.disable_adapters:
            return []
        names, modules = self.active_adapters, self.part(part)
        state = self.forward_pass.current
        if state.samples is not None:
            names = list(state.samples) if state.adapter is None else [state.adapter]
        return [(name, modules[name]) for name in names if name in modules]

    def can_mix(self, adapter_names: list[str]) -> bool:
        """Whether samples with these adapters can be one batch here."""
        return True

    def by_adapter(self, function: Callable, *tensors: Optional[torch.Tensor]) -> Any:
        """Return `function(*tensors)`; in a mixed batch, called for each adapter with its samples of the tensors.

        A result with one row stands for all the samples that it was made for.
        """
        state = self.forward_pass.current
        samples = state.samples
        if samples is None:
            return function(*tensors)
        size, results = sum(map(len, samples.values())), []
        for state.adapter, indices in samples.items():
            try:
                result = function(*take(tensors, indices, size))
            finally:
                state.adapter = None
            results.append(_for_each(result, len(indices)))
        return join(results, list(samples.values()), "hidden states")

    def _get_base_layer_device_and_dtype(
        self, base_layer: nn.Module
    ) -> tuple[Optional[torch.device], Optional[torch.dtype]]:
        # PEFT looks for `.weight`, which an encoder layer has not. Quantized weights are no floats, norms always are.
        for parameter in base_layer.parameters():
            if parameter.is_floating_point():
                return parameter.device, parameter.dtype
        return None, None

    def unmerge(self) -> None:
        """Nothing to do: adapters of this kind are never merged."""

    def _mixed_batch_forward(self, x: torch.Tensor, *args: Any, adapter_names: list[str], **kwargs: Any) -> Any:
        """Run this layer alone, each sample with the adapter of that name, as the layers of PEFT's own types do."""
        state = PassState(self.forward_pass.current, samples_by_adapter(adapter_names))
        return self.forward_pass.run(state, self, x, *args, **kwargs)


def _for_each(result: Any, num_samples: int) -> Any:
    if isinstance(result, tuple):
        return tuple(_for_each(item, num_samples) for item in result)
    return result if result is None else result.expand(num_samples, *result.shape[1:])


def base_layer_of(module: nn.Module) -> nn.Module:
    """Return the module itself, or the one that a tuner layer is around."""
    return module.base_layer if isinstance(module, HookedTunerLayer) else module


def keep_frozen_statistics(model: nn.Module) -> None:
    """Leave frozen batch norms (wav2vec2-conformer has some) in evaluation mode.

    In training mode their running statistics would follow the new data: the base model would change, and an adapter,
    whose checkpoint does not have them, would be loaded onto other statistics than it was trained with.
    """
    for module in model.modules():
        if is_batch_norm(module) and module.training and not any(p.requires_grad for p in module.parameters()):
            module.eval()


def first_tensor(output: Any) -> torch.Tensor:
    """Return the hidden states of what a module returned, a tensor or a tuple that starts with it."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, tensor: torch.Tensor) -> Any:
    """Return `output` with other hidden states."""
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor
