"""The samples of a data set, as the frozen part of a model sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .calls import argument_names, is_input
from .store import key_of


Tensors = dict[str, torch.Tensor]


class Samples:
    """The samples of a data set, split into what reaches the frozen part and other columns.

    Args:
        model: without adapters around it, as `get_base_model` returns it.
        dataset: has a length, and gives dictionaries.

    Raises:
        ValueError: the data set is empty, or its first sample lacks the model's main input.
    """

    def __init__(self, model: PreTrainedModel, dataset: Any) -> None:
        self.dataset = dataset
        self.main = model.main_input_name
        self.device = next(model.parameters()).device
        self.names = [name for name in argument_names(model) if is_input(name)]
        if len(dataset) == 0:
            raise ValueError("cache_frozen needs a data set with at least one sample, got none.")
        first = self.inputs_of(0)
        self.shapes = {name: tuple(value.shape) for name, value in first.items()}
        self.dtypes = {name: value.dtype for name, value in first.items()}
        if not first[self.main].is_floating_point():
            raise ValueError(f"{self.main!r} must be of floating point, got {first[self.main].dtype}.")

    def inputs_of(self, index: int) -> Tensors:
        """Return the tensors of a sample that reach the frozen part."""
        return self._split(self.dataset[index], index)[0]

    def _split(self, sample: Any, index: int) -> tuple[Tensors, dict[str, Any]]:
        if not isinstance(sample, Mapping) or self.main not in sample:
            found = ", ".join(map(repr, sample)) if isinstance(sample, Mapping) else type(sample).__name__
            raise ValueError(
                f"Sample {index} must be a dictionary with the model's main input, {self.main!r}, got {found}."
            )
        inputs = {name: sample[name] for name in self.names if sample.get(name) is not None}
        # What an entry holds is not kept in memory as well. The names keep their order.
        others = {name: None if name in inputs else value for name, value in sample.items()}
        return {name: _as_tensor(value) for name, value in inputs.items()}, others

    def read_all(self) -> tuple[list[str], list[dict[str, Any]]]:
        """Return the names of the samples' entries, and their other columns.

        Raises:
            ValueError: the samples' inputs differ in shape or type, or change from one time to the next.
        """
        for index in {0, len(self.dataset) // 2, len(self.dataset) - 1}:
            self.check_same(index, key_of(self.inputs_of(index)), self.inputs_of(index))
        keys, columns = [], []
        for index in tqdm(range(len(self.dataset)), "Reading samples", unit="sample", leave=False):
            inputs, others = self._split(self.dataset[index], index)
            self._check_shapes(inputs, index)
            keys.append(key_of(inputs))
            columns.append(others)
        return keys, columns

    def check_same(self, index: int, key: str, again: Tensors) -> None:
        """Check that a sample's inputs, read again, have the entry of the first time.

        Raises:
            ValueError: they do not.
        """
        if key_of(again) != key:
            raise ValueError(
                f"Sample {index} of the data set has other values each time that it is asked for (augmentation?), so its "
                "states cannot be kept. Take the augmentation out, or train from the input."
            )

    def _check_shapes(self, inputs: Tensors, index: int) -> None:
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        dtypes = {name: value.dtype for name, value in inputs.items()}
        if (shapes, dtypes) != (self.shapes, self.dtypes):
            raise ValueError(
                f"All samples must have inputs of the same shape, because they are not padded in batches: sample 0 has "
                f"{_described(self.shapes, self.dtypes)}, sample {index} {_described(shapes, dtypes)}. Let the feature "
                "extractor pad or truncate all to one length (padding='max_length', truncation=True, max_length=...), "
                "and give an attention_mask where the model takes one."
            )

    def batch(self, items: list[Tensors]) -> Tensors:
        """Return a batch of samples, on the model's device."""
        return {name: torch.stack([item[name] for item in items]).to(self.device) for name in self.shapes}

    def probe(self) -> tuple[Tensors, Tensors]:
        """Return a batch of the first sample, and one of it and of noise, whose last quarter is padding."""
        first = self.inputs_of(0)
        noise = dict(first)
        generator = torch.Generator().manual_seed(0)
        main = first[self.main]
        noise[self.main] = torch.randn(main.shape, generator=generator).to(main.dtype)
        if "attention_mask" in first:
            length = first["attention_mask"].shape[-1]
            noise["attention_mask"] = torch.ones_like(first["attention_mask"])
            noise["attention_mask"][..., length - length // 4 :] = 0
        return self.batch([first]), self.batch([first, noise])


def _as_tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    tensor = torch.as_tensor(np.asarray(value))
    # As collators do: numbers in lists have no type of their own.
    is_typed = isinstance(value, np.ndarray) or not tensor.is_floating_point()
    return tensor if is_typed else tensor.to(torch.get_default_dtype())


def _described(shapes: dict[str, tuple[int, ...]], dtypes: dict[str, torch.dtype]) -> str:
    return ", ".join(f"{name} {shape} of {dtypes[name]}" for name, shape in shapes.items())
