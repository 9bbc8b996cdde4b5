"""The tuner layer around the module that the model's input enters: it adds prompts to the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import torch
from torch import nn

from ..backbones.spec import Backbone
from ..modules import InputPrompt
from ..utils.around import unwrap_forward, wrap_forward
from ..utils.forward_pass import ForwardPass
from .calls import Call, parameter_names
from .tuner_layer import HookedTunerLayer


class InputParts(NamedTuple):
    """What one adapter adds to the model's input."""

    prompt: Optional[InputPrompt] = None


class InputTunerLayer(HookedTunerLayer):
    """Wraps the module that the model's input enters, and adds the prompts of the active adapters to that input.

    Args:
        base_layer: the module; its first argument is the input, `(batch, *input_shape)`.
        backbone: the model that it is part of; its encoder's attention mask says where each clip ends.
        prefix: prefix of the tuner type, which PEFT recognizes its parameters by.
        forward_pass: the state of the model's forward passes.
    """

    parts = ("prompt",)

    def __init__(self, base_layer: nn.Module, backbone: Backbone, prefix: str, forward_pass: ForwardPass) -> None:
        super().__init__(base_layer, prefix, forward_pass)
        encoder = backbone.encoder
        self._encoder_parameters = parameter_names(encoder)
        # Padding matters where the length varies only.
        varies = None in backbone.input_shape
        self._encoder = (encoder,) if varies else ()  # in a tuple, so that torch does not take it for a child
        for module in self._encoder:
            wrap_forward(module, self._with_lengths)

    def forward(self, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the base layer on the input, `(batch, *input_shape)`, with the prompts added."""
        state = self.forward_pass.current
        lengths, state.clip_lengths = state.clip_lengths, None
        return self.base_layer(self.by_adapter(self._with_prompts, inputs, lengths), *args, **kwargs)

    def remove_hooks(self) -> None:
        """Give the base layer and the encoder back as they were."""
        super().remove_hooks()
        for module in self._encoder:
            unwrap_forward(module, self)

    def _with_prompts(self, inputs: torch.Tensor, lengths: Optional[torch.Tensor]) -> torch.Tensor:
        for _, prompt in self.active("prompt"):
            inputs = prompt(inputs, lengths)
        return inputs

    def _with_lengths(self, forward: Callable[..., Any], encoder: nn.Module, args: tuple, kwargs: dict) -> Any:
        mask = Call(self._encoder_parameters, args, kwargs).get("attention_mask")
        self.forward_pass.current.clip_lengths = None if mask is None else mask.sum(dim=1).long()
        return forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Models ask this module for its attributes: a convolution's stride, how to freeze a feature encoder.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)
