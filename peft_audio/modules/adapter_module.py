"""The contract of adapter modules with the encoder layer that runs them."""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from torch import nn


class TokenLayout(NamedTuple):
    """Which tokens of a forward pass form the grid, and which are padding.

    Attributes:
        grid: numbers of rows (frequency) and columns (time). The last `rows * columns` tokens are those of the grid,
            row after row; those in front of them are special tokens.
        mask: `(batch, tokens)`, True for tokens and False for padding; None where there is no padding.
    """

    grid: tuple[int, int]
    mask: Optional[torch.Tensor] = None

    def hide_padding(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return `(batch, tokens, ...)` with zeros in place of padding, as at the grid's edges."""
        if self.mask is None:
            return tokens
        return tokens * self.mask.to(tokens.dtype).reshape(*self.mask.shape, *[1] * (tokens.dim() - 2))


class AdapterModule(nn.Module):
    """Base class of the modules that adapt the tokens of an encoder layer.

    A subclass implements `forward(hidden_states, layout)`:

    - `hidden_states` is `(batch, tokens, hidden_size)`, and so is the result.
    - The result has the dtype of `hidden_states`, whatever the dtype of the module's own weights; under autocast it
      has the dtype that autocast gives the module's last operation. `cast_input` and `in_dtype_of` convert.
    - `layout` says which tokens form the grid and which are padding. A module that mixes tokens must read nothing from
      padding (`TokenLayout.hide_padding`), and must never mix the samples of a batch.
    - Dropout acts inside the module, in training mode only, in front of its last projection.

    The two properties below tell the layer which tokens it may leave out. Their defaults are slower, and right for
    every module.
    """

    cast_input_dtype_enabled: bool = True  # False: something else takes care of it, such as layerwise casting

    def cast_input(self, hidden_states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Bring the input to the dtype of the module's weights, unless PEFT was told to leave it as it is."""
        return in_dtype_of(weight, hidden_states) if self.cast_input_dtype_enabled else hidden_states

    @property
    def reads_neighbors(self) -> bool:
        """Whether a token's output depends on other tokens, so that `forward` needs to know the padding."""
        return True

    @property
    def special_tokens_stand_alone(self) -> bool:
        """Whether the special tokens get the same output when the other tokens are left out."""
        return not self.reads_neighbors

    def forward(self, hidden_states: torch.Tensor, layout: Optional[TokenLayout] = None) -> torch.Tensor:
        """Map `(batch, tokens, hidden_size)` to the same shape.

        Raises:
            NotImplementedError: in a subclass that does not implement it.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement forward(hidden_states, layout).")


def reads_neighbors(module: nn.Module) -> bool:
    """Whether a module mixes tokens; True for one without this property."""
    return bool(getattr(module, "reads_neighbors", True))


def special_tokens_stand_alone(module: nn.Module) -> bool:
    """Whether a module may run on the special tokens alone; by default only if it mixes no tokens."""
    return bool(getattr(module, "special_tokens_stand_alone", not reads_neighbors(module)))


def check_result(module: nn.Module, hidden_states: torch.Tensor, result: torch.Tensor) -> None:
    """Check the shape and dtype of what a module made of `hidden_states`.

    Raises:
        ValueError: if the result has another shape, or outside of autocast another dtype.
    """
    name = type(module).__name__
    if result.shape != hidden_states.shape:
        raise ValueError(
            f"The forward of adapter module {name} must return the shape that it is given, "
            f"{tuple(hidden_states.shape)} (batch, tokens, hidden_size), got {tuple(result.shape)}."
        )
    if result.dtype != hidden_states.dtype and not torch.is_autocast_enabled(hidden_states.device.type):
        raise ValueError(
            f"The forward of adapter module {name} must return the dtype that it is given, {hidden_states.dtype}, got "
            f"{result.dtype}. Convert the result, e.g. with peft_audio.modules.in_dtype_of(hidden_states, result)."
        )


def in_dtype_of(other: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Bring `tensor` to the dtype of `other`, unless autocast chooses the dtype of every operation."""
    return tensor if torch.is_autocast_enabled(tensor.device.type) else tensor.to(other.dtype)
