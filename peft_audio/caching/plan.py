"""What is known of a forward pass before it is made from cached states: shapes, and what stands in for modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Optional

import torch
from torch import nn

from .split_point import Cut, trace


@dataclass(frozen=True)
class Template:
    """A tensor that a module returns: its sizes for one clip and whether each grows with the batch; and its place in
    `Plan.constants` if it is the same for every input, as positions are that layers hand on."""

    sizes: tuple[tuple[int, bool], ...]
    dtype: torch.dtype
    constant: Optional[int] = None

    def times(self, batch_size: int) -> list[int]:
        return [batch_size if grows else 1 for _, grows in self.sizes]


@dataclass(frozen=True)
class Plan:
    """How to run from states of one shape.

    Attributes:
        main: name of the model's main input; `raw_shape`, `raw_dtype` of one sample of it.
        shape: of the states of one sample, `dtype` theirs.
        shapes: of one sample of the other tensors that the frozen part was given, by name.
        outputs: what the calls of the replaced modules return, trees of templates, by path.
        constants: what they return for every input, for a batch of one.
    """

    cut: Cut
    main: str
    raw_shape: tuple[int, ...]
    raw_dtype: torch.dtype
    shape: tuple[int, ...]
    dtype: torch.dtype
    shapes: dict[str, tuple[int, ...]]
    outputs: dict[str, list[Any]]
    constants: list[torch.Tensor]

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """Shape of the states as a sample of the main input: with more dimensions than a raw one has."""
        return (1,) * (len(self.raw_shape) + 1 - len(self.shape)) + self.shape

    @property
    def key(self) -> tuple:
        return self.packed_shape, tuple(sorted(self.shapes.items()))


def make_plan(model: nn.Module, cut: Cut, main: str, one: dict[str, Any], two: dict[str, Any]) -> Plan:
    """Return the plan for inputs such as `one`, a batch of one clip; `two` is a batch of that clip and another.

    Raises:
        ValueError: if what enters the cut, or a module before it returns, does not grow with the batch.
    """
    frames = [trace(model, inputs, cut.frame, cut.replaced) for inputs in (one, two)]
    states, pair = (calls[cut.frame].argument for calls in frames)
    if states is None or (len(states), len(pair)) != (1, 2) or states.shape[1:] != pair.shape[1:]:
        raise ValueError(
            f"What enters {cut.path!r} of {type(model).__name__} is no tensor with the batch as its first dimension, so "
            "it cannot be kept for each sample. Train from the input."
        )
    outputs: dict[str, list[Any]] = {}
    constants: list[torch.Tensor] = []
    for index, path in cut.replaced.items():
        tree = map_tensors(partial(_template, path, constants), *(calls[index].output for calls in frames))
        outputs.setdefault(path, []).append(tree)
    return Plan(
        cut=cut,
        main=main,
        raw_shape=tuple(one[main].shape[1:]),
        raw_dtype=one[main].dtype,
        shape=tuple(states.shape[1:]),
        dtype=states.dtype,
        shapes={name: tuple(value.shape[1:]) for name, value in one.items() if name != main},
        outputs=outputs,
        constants=constants,
    )


def _template(path: str, constants: list[torch.Tensor], one: torch.Tensor, two: torch.Tensor) -> Template:
    if one.dim() != two.dim() or any(b not in (a, 2 * a) for a, b in zip(one.shape, two.shape)):
        raise ValueError(
            f"{path!r} returns a tensor of shape {tuple(one.shape)} for one clip and {tuple(two.shape)} for two, which "
            "does not grow with the batch, so it cannot be left out. Train from the input."
        )
    template = Template(tuple((a, b != a) for a, b in zip(one.shape, two.shape)), one.dtype)
    if not torch.equal(one.repeat(template.times(2)), two):
        return template
    for index, known in enumerate(constants):
        if known.dtype == one.dtype and torch.equal(known, one):
            return replace(template, constant=index)
    constants.append(one.clone())
    return replace(template, constant=len(constants) - 1)


def map_tensors(function: Callable, *trees: Any) -> Any:
    """Return the first tree with what `function` gives for its tensors (or templates) and those of the others."""
    first = trees[0]
    if isinstance(first, (torch.Tensor, Template)):
        return function(*trees)
    if isinstance(first, Mapping):
        return type(first)(**{name: map_tensors(function, *(tree[name] for tree in trees)) for name in first})
    if isinstance(first, (tuple, list)):
        items = [map_tensors(function, *parts) for parts in zip(*trees)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return first
