"""The tuner layer around the module that the model's input enters: it adds prompts to the input."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, Optional

import torch
from torch import nn

from ..backbones.spec import Backbone
from ..modules import InputPrompt
from ..utils.per_thread import PerThread
from .tuner_layer import HookedTunerLayer


class InputParts(NamedTuple):
    """What one adapter adds to the model's input."""

    prompt: Optional[InputPrompt] = None


class InputPass(PerThread):
    """One forward pass of the model: the length of every clip, `(batch,)`, None without padding."""

    def __init__(self) -> None:
        self.lengths: Optional[torch.Tensor] = None


class InputTunerLayer(HookedTunerLayer):
    """Wraps the module that the model's input enters, and adds the prompts of the active adapters to that input.

    Args:
        base_layer: the module; its first argument is the input, `(batch, *input_shape)`.
        model: the model without its head, whose attention mask tells where each clip ends.
        backbone: the model that it is part of.
        prefix: prefix of the tuner type, which PEFT recognises its parameters by.
    """

    parts = ("prompt",)

    def __init__(self, base_layer: nn.Module, model: nn.Module, backbone: Backbone, prefix: str) -> None:
        super().__init__(base_layer, prefix)
        self._pass = InputPass()
        self._model_parameters = tuple(inspect.signature(model.forward).parameters)
        # Padding matters where the length varies only.
        varies = None in backbone.input_shape
        self._hooks = (model.register_forward_pre_hook(self._remember_lengths, with_kwargs=True),) if varies else ()

    def forward(self, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the base layer on the input with the prompts added."""
        lengths, self._pass.lengths = self._pass.lengths, None
        return self.base_layer(self.by_adapter(self._with_prompts, inputs, lengths), *args, **kwargs)

    def _with_prompts(self, inputs: torch.Tensor, lengths: Optional[torch.Tensor]) -> torch.Tensor:
        for _, prompt in self.active("prompt"):
            inputs = prompt(inputs, lengths)
        return inputs

    def _remember_lengths(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        arguments = dict(zip(self._model_parameters, args)) | kwargs
        mask = arguments.get("attention_mask")
        self._pass.lengths = None if mask is None else mask.sum(dim=1).long()

    def __getattr__(self, name: str) -> Any:
        # Models ask this module for its attributes: a convolution's stride, how to freeze a feature encoder.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(super().__getattr__("base_layer"), name)
