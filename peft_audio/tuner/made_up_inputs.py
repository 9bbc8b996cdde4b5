"""Inputs that a model takes, made up from what is known of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional

import torch
from torch import nn

from ..backbones.spec import Backbone


NUM_CLIPS = 2
# Lengths of inputs whose length varies: samples of waveforms, and frames of features.
SAMPLES, FRAMES = (4000, 32000), (64, 400)
MIN_TOKENS = 4


class Runnable(NamedTuple):
    """A part of a model that runs its encoder layers, and inputs for it.

    Attributes:
        module: the model, or the smallest part of it that runs.
        inputs: a batch of two clips by name; the first one is the main input.
    """

    module: nn.Module
    inputs: dict[str, torch.Tensor]

    @property
    def main(self) -> str:
        """Name of the main input."""
        return next(iter(self.inputs))


class Outputs(NamedTuple):
    """What one run gives.

    Attributes:
        output: the model's logits, or its last hidden states.
        entered: what enters each encoder layer, first the tokens.
        left: the tokens that each encoder layer returns.
    """

    output: torch.Tensor
    entered: list[torch.Tensor]
    left: list[torch.Tensor]


def run(runnable: Runnable, layers: Sequence[nn.Module], inputs: Optional[Mapping[str, Any]] = None) -> Outputs:
    """Run the encoder and return what its layers and the model give."""
    entered: list[torch.Tensor] = []
    left: list[torch.Tensor] = []
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: entered.append(_tensor((*args, kwargs))), with_kwargs=True
        )
        for layer in layers
    ]
    handles += [layer.register_forward_hook(lambda _, args, output: left.append(_tensor(output))) for layer in layers]
    try:
        output = runnable.module(**(runnable.inputs if inputs is None else inputs))
    finally:
        for handle in handles:
            handle.remove()
    return Outputs(_tensor(output), entered, left)


def made_up_inputs(model: nn.Module, backbone: Backbone) -> Optional[Runnable]:
    """Return inputs that the model, or the part around its encoder layers, takes; None if none were found.

    Where the row gives `example_inputs`, those are taken as they are.
    """
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    example = backbone.spec.example_inputs
    if example is not None:
        given = {name: value.to(parameter.device) for name, value in example(model.config, NUM_CLIPS).items()}
        return Runnable(model, given)
    layers = [model.get_submodule(name) for name in backbone.layer_names]
    for module in _around(model, backbone):
        for shape in _shapes(backbone):
            runnable = Runnable(module, {_main_input(module): _noise((NUM_CLIPS, *shape), parameter)})
            if _runs(runnable, layers):
                return runnable
    return None


def _runs(runnable: Runnable, layers: Sequence[nn.Module]) -> bool:
    try:
        with torch.no_grad():
            outputs = run(runnable, layers)
    except Exception:  # whatever a model raises for inputs of another form
        return False
    tokens = outputs.left[:1]
    return len(outputs.left) == len(layers) and all(t.dim() == 3 and max(t.shape[:2]) >= MIN_TOKENS for t in tokens)


def _around(model: nn.Module, backbone: Backbone) -> Iterator[nn.Module]:
    """Yield the model, and the modules in it that hold the encoder layers, outermost first."""
    *names, _, _ = ("", *backbone.layer_names[0].split("."))
    for depth in range(1, len(names) + 1):
        yield model.get_submodule(".".join(names[1:depth]))


def _shapes(backbone: Backbone) -> Iterator[tuple[int, ...]]:
    shape = backbone.input_shape
    known = list(shape)
    while known and known[0] == 1:  # what the module at `input` gets may have a dimension more than the model's input
        known = known[1:]
    for lengths in zip(SAMPLES, FRAMES):
        for form in (shape, tuple(known), *_from_first_weight(backbone.encoder)):
            length = lengths[0] if len(form) == 1 else lengths[1]
            yield tuple(length if size is None else size for size in form)


def _from_first_weight(encoder: nn.Module) -> Iterator[tuple[Optional[int], ...]]:
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            return (yield (None, module.in_features))
        if isinstance(module, nn.Conv1d):
            return (yield (module.in_channels, None))
        if isinstance(module, nn.Conv2d):
            yield (None, 4 * module.kernel_size[1])
            return (yield (module.in_channels, None, 4 * module.kernel_size[1]))


def _main_input(module: nn.Module) -> str:
    parameters = list(inspect.signature(module.forward).parameters)
    name = getattr(module, "main_input_name", None)
    return name if name in parameters else parameters[0]


def _noise(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(like.device, like.dtype)


def takes_mask(module: nn.Module) -> bool:
    """Whether a module has the argument `attention_mask`."""
    return "attention_mask" in inspect.signature(module.forward).parameters


def _tensor(value: Any) -> torch.Tensor:
    """Return the first floating-point tensor of what a module is given or returns; logits where they are named."""
    if isinstance(value, torch.Tensor):
        return value
    items = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else []
    if isinstance(value, Mapping) and "logits" in value:
        items = [value["logits"]]
    found = (_tensor(item) for item in items)
    return next((tensor for tensor in found if tensor.is_floating_point() and tensor.numel()), torch.empty(0))
