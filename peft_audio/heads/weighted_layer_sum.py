"""The weights of `use_weighted_layer_sum`, made trainable per adapter.

transformers keeps them as a bare parameter of the classifier, and PEFT trains and saves modules only. So a module of
the same values is put beside the parameter; PEFT wraps it as it wraps a head, and during the classifier's forward pass
the values of the active adapter stand in for the parameter.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext

import torch
from torch import nn


# Held while one of several threads that run a model puts weights in or takes them out.
LOCK = threading.Lock()
MODULE_NAME = "weighted_layer_sum"


class LayerWeights(nn.Module):
    """Holds the `(layers + 1,)` weights under the name that the classifier has for them, and gives them when called."""

    def __init__(self, parameter_name: str, values: torch.Tensor) -> None:
        super().__init__()
        self.parameter_name = parameter_name
        self.register_parameter(parameter_name, nn.Parameter(values.detach().clone()))

    def forward(self) -> torch.Tensor:
        # A copy: where parameters are spread over processes, this one is whole only while the module runs.
        return getattr(self, self.parameter_name).clone()


def _lock():
    # torch.compile traces one thread, and no locks.
    return nullcontext() if torch.compiler.is_compiling() else LOCK


class LayerWeightsSwap:
    """Two hooks on the classifier that put the active adapter's weights in and take them out again.

    As an attribute of the object they hide the parameter of that name, which stays where it is.
    """

    def __init__(self, model: nn.Module, parameter_name: str) -> None:
        self.parameter_name = parameter_name
        self.running = 0
        self.handles = (
            model.register_forward_pre_hook(self._put_in),
            model.register_forward_hook(self._take_out, always_call=True),
        )

    def _put_in(self, model: nn.Module, args: tuple) -> None:
        with _lock():
            self.running += 1
        # PEFT's wrapper calls the active adapter's, or the model's own while adapters are disabled.
        values = getattr(model, MODULE_NAME)()
        model.__dict__[self.parameter_name] = values

    def _take_out(self, model: nn.Module, args: tuple, output: object) -> None:
        with _lock():
            self.running -= 1
            if self.running == 0:
                model.__dict__.pop(self.parameter_name, None)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def install_layer_weights(model: nn.Module, parameter_name: str) -> LayerWeightsSwap:
    """Put the module and the hooks in; the values start as the model's own."""
    setattr(model, MODULE_NAME, LayerWeights(parameter_name, getattr(model, parameter_name)))
    return LayerWeightsSwap(model, parameter_name)


def remove_layer_weights(model: nn.Module, swap: LayerWeightsSwap, trained: nn.Module) -> None:
    """Take module and hooks out, and leave the values of `trained` in the model's parameter, as PEFT leaves heads."""
    swap.remove()
    delattr(model, MODULE_NAME)
    with torch.no_grad():
        getattr(model, swap.parameter_name).copy_(getattr(trained, swap.parameter_name))
