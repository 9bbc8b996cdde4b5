"""What is known of a forward pass before it is made from cached states: shapes, and what stands in for modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Optional

import torch
from torch import nn

from .calls import ModuleCall, tokens_of, trace
from .split_point import SplitPoint


@dataclass(frozen=True)
class Template:
    """What is known of a tensor that a module returns.

    Attributes:
        sizes: for each dimension, its size for one clip and whether it grows with the batch.
        dtype: the tensor's.
        constant: the tensor's place in `Plan.constants` if it is the same for every input, as positions are that layers
            hand on.
    """

    sizes: tuple[tuple[int, bool], ...]
    dtype: torch.dtype
    constant: Optional[int] = None

    def repeats(self, batch_size: int) -> list[int]:
        """Return how often the tensor for one clip is repeated in each dimension for a batch."""
        return [batch_size if grows else 1 for _, grows in self.sizes]

    def shape(self, batch_size: int) -> list[int]:
        """Return the tensor's shape for a batch."""
        return [size * times for (size, _), times in zip(self.sizes, self.repeats(batch_size))]


@dataclass(frozen=True)
class Plan:
    """How to run the model from states of one shape.

    Attributes:
        split_point: where the states go in.
        main: name of the model's main input.
        raw_shape: shape of one sample of the main input.
        raw_dtype: dtype of the main input.
        shape: shape of the states of one sample.
        dtype: dtype of the states.
        shapes: shapes of one sample of the other inputs of the frozen part, by name.
        outputs: what the calls of the replaced modules return, trees of templates, by path.
        constants: what they return for every input, for a batch of one.
        parts: where encoder layers' outputs are kept: how many of the states' tokens each has, by path.
    """

    split_point: SplitPoint
    main: str
    raw_shape: tuple[int, ...]
    raw_dtype: torch.dtype
    shape: tuple[int, ...]
    dtype: torch.dtype
    shapes: dict[str, tuple[int, ...]]
    outputs: dict[str, list[Any]]
    constants: list[torch.Tensor]
    parts: dict[str, int]

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """Shape of the states as a sample of the main input: one dimension more than a raw sample has, at least."""
        return (1,) * (len(self.raw_shape) + 1 - len(self.shape)) + self.shape

    @property
    def name(self) -> str:
        """What tells its states from others of the model: where they go in, and how many tokens each part has."""
        return ", ".join(f"{path} {size}" for path, size in self.parts.items()) or self.split_point.path

    @property
    def key(self) -> tuple:
        """What tells this plan from others for the same model: the shapes of all inputs."""
        return self.packed_shape, tuple(sorted(self.shapes.items()))


def make_plan(
    model: nn.Module, split_point: SplitPoint, main: str, one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]
) -> Plan:
    """Return the plan for inputs of these shapes.

    Args:
        model: in evaluation mode.
        split_point: where its frozen part ends.
        main: name of its main input.
        one: a batch of one clip.
        two: a batch of that clip and another.

    Raises:
        ValueError: what enters the split point, or what a module before it returns, does not grow with the batch.
    """
    traces = [trace(model, inputs, split_point.number, split_point.replaced) for inputs in (one, two)]
    states, pair = (_states(calls, split_point) for calls in traces)
    if states is None or pair is None or (len(states), len(pair)) != (1, 2) or states.shape[1:] != pair.shape[1:]:
        raise ValueError(
            f"What enters {split_point.path!r} of {type(model).__name__} is no tensor with the batch as its first "
            "dimension, so it cannot be kept for each sample. Train from the input."
        )
    outputs: dict[str, list[Any]] = {}
    paths = [split_point.replaced[number] for number in split_point.taken]
    constants: list[torch.Tensor] = []
    for number, path in split_point.replaced.items():
        tree = map_tensors(partial(_template, path, constants), *(calls[number].output for calls in traces))
        outputs.setdefault(path, []).append(tree)
    return Plan(
        split_point=split_point,
        main=main,
        raw_shape=tuple(one[main].shape[1:]),
        raw_dtype=one[main].dtype,
        shape=tuple(states.shape[1:]),
        dtype=states.dtype,
        shapes={name: tuple(value.shape[1:]) for name, value in one.items() if name != main},
        outputs=outputs,
        constants=constants,
        parts=dict(zip(paths, (part.shape[1] for part in _parts(traces[0], split_point)))),
    )


def _parts(calls: list[ModuleCall], split_point: SplitPoint) -> list[torch.Tensor]:
    return tokens_of([calls[number].output for number in split_point.taken], split_point.num_tokens)


def _states(calls: list[ModuleCall], split_point: SplitPoint) -> Optional[torch.Tensor]:
    return torch.cat(_parts(calls, split_point), dim=1) if split_point.taken else calls[split_point.number].argument


def _template(path: str, constants: list[torch.Tensor], one: torch.Tensor, two: torch.Tensor) -> Template:
    if one.dim() != two.dim() or any(b not in (a, 2 * a) for a, b in zip(one.shape, two.shape)):
        raise ValueError(
            f"{path!r} returns a tensor of shape {tuple(one.shape)} for one clip and {tuple(two.shape)} for two, which "
            "does not grow with the batch, so it cannot be left out. Train from the input."
        )
    template = Template(tuple((a, b != a) for a, b in zip(one.shape, two.shape)), one.dtype)
    if not torch.equal(one.repeat(template.repeats(2)), two):
        return template
    for index, known in enumerate(constants):
        if known.dtype == one.dtype and torch.equal(known, one):
            return replace(template, constant=index)
    constants.append(one.clone())
    return replace(template, constant=len(constants) - 1)


def map_tensors(function: Callable[..., Any], *trees: Any) -> Any:
    """Return the first tree with other leaves: what `function` returns for a tensor or template and its counterparts.

    Args:
        function: takes one leaf of each tree.
        trees: mappings, tuples and lists of the same structure. Other leaves are taken from the first.
    """
    first = trees[0]
    if isinstance(first, (torch.Tensor, Template)):
        return function(*trees)
    if isinstance(first, Mapping):
        return type(first)(**{name: map_tensors(function, *(tree[name] for tree in trees)) for name in first})
    if isinstance(first, (tuple, list)):
        items = [map_tensors(function, *parts) for parts in zip(*trees)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return first
