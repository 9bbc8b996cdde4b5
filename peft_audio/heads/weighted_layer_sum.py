"""The weights of `use_weighted_layer_sum`, trained and saved for each adapter.

Some classifiers of transformers read a weighted sum of all hidden states. The weights are a bare parameter, and PEFT
trains and saves modules only. So a module with the same values is put beside the parameter, and PEFT wraps it as it
wraps a head. During the classifier's forward pass the active adapter's weights replace the parameter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
from torch import nn

from ..upstream.torch_modules import install_stand_in, remove_stand_in
from ..utils.around import unwrap_forward, wrap_forward
from ..utils.forward_pass import ForwardPass


# Held while one of several threads that run a model begins or ends.
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


class WeightsOfThread:
    """Stands in the place of a classifier's weights while threads run it: each reads those of its own call.

    It is taken for a tensor by the functions of torch, and has the attributes of one.
    """

    def __init__(self, forward_pass: ForwardPass, own: nn.Parameter) -> None:
        self._forward_pass = forward_pass
        self._own = own

    def tensor(self) -> torch.Tensor:
        """Return this thread's weights, `(layers + 1,)`."""
        weights = self._forward_pass.layer_weights
        return self._own if weights is None else weights

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not there yet: while a copy is being made
            raise AttributeError(name)
        return getattr(self.tensor(), name)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Optional[dict[str, Any]] = None
    ) -> Any:
        """Call a function of torch with the weights in the place of this object."""
        given = [value.tensor() if isinstance(value, cls) else value for value in args]
        named = {key: value.tensor() if isinstance(value, cls) else value for key, value in (kwargs or {}).items()}
        return func(*given, **named)


class LayerWeightsSwap:
    """A wrapper that replaces a classifier's weights by the active adapter's during its forward pass.

    Args:
        parameter_name: name of the parameter to replace.
    """

    def __init__(self, parameter_name: str) -> None:
        self.parameter_name = parameter_name
        self.running = 0

    def run(self, forward: Callable[..., Any], model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run the classifier with what PEFT's wrapper gives: its own weights while adapters are disabled."""
        weights = getattr(model, MODULE_NAME)()
        if torch.compiler.is_compiling():  # traces a single thread, and cannot trace locks
            install_stand_in(model, self.parameter_name, weights)
            output = forward(*args, **kwargs)
            remove_stand_in(model, self.parameter_name)
            return output
        forward_pass = ForwardPass.of(model)
        outer = forward_pass.layer_weights
        try:
            forward_pass.layer_weights = weights
            with self._installed(model, forward_pass):
                return forward(*args, **kwargs)
        finally:
            forward_pass.layer_weights = outer

    @contextmanager
    def _installed(self, model: nn.Module, forward_pass: ForwardPass) -> Iterator[None]:
        with LOCK:
            self.running += 1
        try:
            own = model._parameters[self.parameter_name]
            assert own is not None
            install_stand_in(model, self.parameter_name, WeightsOfThread(forward_pass, own))
            yield
        finally:
            with LOCK:
                self.running -= 1
                if self.running == 0:
                    remove_stand_in(model, self.parameter_name)

    def __deepcopy__(self, memo: dict[int, Any]) -> LayerWeightsSwap:
        return type(self)(self.parameter_name)

    def __reduce__(self) -> tuple:
        return type(self), (self.parameter_name,)


def install_layer_weights(model: nn.Module, parameter_name: str) -> None:
    """Install the module and the wrapper on a classifier; the weights start with the parameter's values.

    Args:
        model: the classifier.
        parameter_name: name of its parameter `(layers + 1,)`.
    """
    setattr(model, MODULE_NAME, LayerWeights(parameter_name, getattr(model, parameter_name)))
    wrap_forward(model, LayerWeightsSwap(parameter_name).run)


def remove_layer_weights(model: nn.Module, trained: LayerWeights) -> None:
    """Remove the module and the wrapper, and copy the weights of `trained` into the parameter, as PEFT keeps heads.

    Args:
        model: the classifier.
        trained: the `LayerWeights` of the adapter whose weights are kept.
    """
    unwrap_forward(model, LayerWeightsSwap)
    delattr(model, MODULE_NAME)
    with torch.no_grad():
        getattr(model, trained.parameter_name).copy_(getattr(trained, trained.parameter_name))
