"""The weights of `use_weighted_layer_sum`, trained and saved for each adapter.

Some classifiers of transformers read a weighted sum of all hidden states. The weights are a bare parameter, and PEFT
trains and saves modules only. So a module with the same values is put beside the parameter, and PEFT wraps it as it
wraps a head. During the classifier's forward pass the active adapter's weights replace the parameter.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from ..upstream.hooks import remove_hooks
from ..upstream.torch_modules import install_stand_in, remove_stand_in


# Held while one of several threads that run a model installs or removes weights.
LOCK = threading.Lock()
MODULE_NAME = "weighted_layer_sum"


class LayerWeights(nn.Module):
    """Holds an adapter's weights, `(layers + 1,)`, under the name of the classifier's parameter.

    Args:
        parameter_name: name of the classifier's parameter.
        values: the initial weights; they are copied.
    """

    def __init__(self, parameter_name: str, values: torch.Tensor) -> None:
        super().__init__()
        self.parameter_name = parameter_name
        self.register_parameter(parameter_name, nn.Parameter(values.detach().clone()))

    def forward(self) -> torch.Tensor:
        """Return a copy of the weights, `(layers + 1,)`.

        A copy, because parameters that are sharded over processes are complete only while their module runs.
        """
        return getattr(self, self.parameter_name).clone()


def _lock() -> AbstractContextManager[Any]:
    # torch.compile traces a single thread, and cannot trace locks.
    return nullcontext() if torch.compiler.is_compiling() else LOCK


class LayerWeightsSwap:
    """Two hooks that replace a classifier's weights by the active adapter's during its forward pass.

    Args:
        model: the classifier, which has a `LayerWeights` under `MODULE_NAME`.
        parameter_name: name of the parameter to replace.
    """

    def __init__(self, model: nn.Module, parameter_name: str) -> None:
        self.parameter_name = parameter_name
        self.running = 0
        model.register_forward_pre_hook(self._install)
        model.register_forward_hook(self._remove, always_call=True)

    def _install(self, model: nn.Module, args: tuple) -> None:
        with _lock():
            self.running += 1
        # PEFT's wrapper gives the active adapter's weights, or the model's own while adapters are disabled.
        install_stand_in(model, self.parameter_name, getattr(model, MODULE_NAME)())

    def _remove(self, model: nn.Module, args: tuple, output: object) -> None:
        with _lock():
            self.running -= 1
            if self.running == 0:
                remove_stand_in(model, self.parameter_name)


def install_layer_weights(model: nn.Module, parameter_name: str) -> None:
    """Install the module and the hooks on a classifier; the weights start with the parameter's values.

    Args:
        model: the classifier.
        parameter_name: name of its parameter `(layers + 1,)`.
    """
    setattr(model, MODULE_NAME, LayerWeights(parameter_name, getattr(model, parameter_name)))
    LayerWeightsSwap(model, parameter_name)


def remove_layer_weights(model: nn.Module, trained: LayerWeights) -> None:
    """Remove the module and the hooks, and copy the weights of `trained` into the parameter, as PEFT keeps heads.

    Args:
        model: the classifier.
        trained: the `LayerWeights` of the adapter whose weights are kept.
    """
    remove_hooks(model, LayerWeightsSwap)
    delattr(model, MODULE_NAME)
    with torch.no_grad():
        getattr(model, trained.parameter_name).copy_(getattr(trained, trained.parameter_name))
