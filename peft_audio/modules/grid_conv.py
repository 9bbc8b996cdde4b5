"""Convolution over the grid that an encoder's tokens come from (LoAA)."""

from __future__ import annotations

import math
from typing import NamedTuple, Optional

import torch
from torch import nn
from torch.nn import functional

from .scaled import Factor, scaled


class TokenLayout(NamedTuple):
    """How the tokens of a forward pass lie.

    Attributes:
        grid: numbers of rows (frequency) and columns (time). Row after row, the grid's tokens are the last ones;
            those in front of them are special tokens.
        mask: `(batch, tokens)`, True for tokens and False for padding; None where there is no padding.
    """

    grid: tuple[int, int]
    mask: Optional[torch.Tensor] = None

    def hide_padding(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return `(batch, tokens, ...)` with zeros in place of padding, as at the grid's edges."""
        if self.mask is None:
            return tokens
        return tokens * self.mask.to(tokens.dtype).reshape(*self.mask.shape, *[1] * (tokens.dim() - 2))


class GridConv(nn.Module):
    """2-d convolution over a grid of tokens, same padding, stride 1; the centre tap alone for special tokens.

    The same numbers as `torch.nn.functional.conv2d` on the grid. The taps are applied as one matrix product over all
    tokens, and tokens are shifted on the side that has fewer channels, so that wide tensors are never copied.

    Args:
        in_channels: width of the tokens that come in.
        out_channels: width of the tokens that go out.
        kernel: numbers of taps along (frequency, time), both odd.
        bias: add a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int], bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *kernel))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, tokens: torch.Tensor, layout: TokenLayout, factor: Factor = 1.0) -> torch.Tensor:
        """Map `(batch, tokens, in_channels)` to `(batch, tokens, out_channels)`, times `factor`.

        Raises:
            ValueError: if the grid has more tokens than came in.
        """
        _check_layout(tokens, layout)
        out_channels, in_channels, *kernel = self.weight.shape
        tokens, bias = scaled(tokens, factor), scaled(self.bias, factor)
        if out_channels <= in_channels:
            taps = functional.linear(tokens, self.weight.permute(2, 3, 0, 1).reshape(-1, in_channels))
            taps = layout.hide_padding(taps.unflatten(-1, (-1, out_channels)))
            outputs = _sum_shifted(taps, layout.grid, kernel)
            return outputs if bias is None else outputs + bias
        neighbours = _gather_shifted(layout.hide_padding(tokens), layout.grid, kernel)
        weight = self.weight.permute(0, 2, 3, 1).reshape(out_channels, -1)
        return functional.linear(neighbours, weight, bias)

    def extra_repr(self) -> str:
        out_channels, in_channels, *kernel = self.weight.shape
        return f"{in_channels}, {out_channels}, kernel={tuple(kernel)}, bias={self.bias is not None}"


def _check_layout(tokens: torch.Tensor, layout: TokenLayout) -> None:
    rows, columns = layout.grid
    if rows * columns > tokens.shape[1]:
        raise ValueError(f"A grid of {rows} x {columns} needs {rows * columns} tokens, got {tokens.shape[1]}.")


def _sum_shifted(taps: torch.Tensor, grid: tuple[int, int], kernel: list[int]) -> torch.Tensor:
    """Add up what every tap gives, each shifted to the token that it gives it to: `(b, n, taps, c)` to `(b, n, c)`."""
    rows, columns = grid
    height, width = kernel
    centre = taps.shape[2] // 2
    if height * width == 1:
        return taps[:, :, 0]
    num_special = taps.shape[1] - rows * columns
    special, patches = taps[:, :num_special, centre], taps[:, num_special:].unflatten(1, grid)
    padding = (0, 0, 0, 0, width // 2, width // 2, height // 2, height // 2)
    padded = functional.pad(patches, padding)
    shifted = [padded[:, i : i + rows, j : j + columns, i * width + j] for i in range(height) for j in range(width)]
    return torch.cat([special, sum(shifted[1:], start=shifted[0]).flatten(1, 2)], dim=1)


def _gather_shifted(tokens: torch.Tensor, grid: tuple[int, int], kernel: list[int]) -> torch.Tensor:
    """Put the neighbours that the kernel sees beside each token: `(b, n, c)` to `(b, n, taps * c)`."""
    rows, columns = grid
    height, width = kernel
    if height * width == 1:
        return tokens
    num_taps, channels = height * width, tokens.shape[-1]
    num_special = tokens.shape[1] - rows * columns
    before = num_taps // 2 * channels
    special = functional.pad(tokens[:, :num_special], (before, num_taps * channels - before - channels))
    patches = tokens[:, num_special:].unflatten(1, grid)
    padded = functional.pad(patches, (0, 0, width // 2, width // 2, height // 2, height // 2))
    neighbours = [padded[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)]
    return torch.cat([special, torch.cat(neighbours, dim=-1).flatten(1, 2)], dim=1)
