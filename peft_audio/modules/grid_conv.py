"""Convolution over the grid that an encoder's tokens come from (LoAA)."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from .adapter_module import TokenLayout
from .scaled import Factor, scaled


class GridConv(nn.Module):
    """2-d convolution over a grid of tokens, with same padding and stride 1.

    It gives the same numbers as `torch.nn.functional.conv2d` on the grid. Special tokens in front of the grid have no
    neighbors: for them it is a 1 x 1 convolution with the kernel's center. One matrix product applies all positions
    of the kernel, and tokens are shifted on the side that has fewer channels, so that wide tensors are never copied.

    Args:
        in_channels: width of the tokens that come in.
        out_channels: width of the tokens that go out.
        kernel: kernel size along (frequency, time), both odd.
        bias: add a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int], bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *kernel))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight Kaiming uniform, as `nn.Conv2d` does, and set the bias to zero."""
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
        tokens, bias = scaled(tokens, factor), None if self.bias is None else scaled(self.bias, factor)
        if out_channels <= in_channels:
            products = functional.linear(tokens, self.weight.permute(2, 3, 0, 1).reshape(-1, in_channels))
            products = layout.hide_padding(products.unflatten(-1, (-1, out_channels)))
            outputs = _sum_shifted(products, layout.grid, kernel)
            return outputs if bias is None else outputs + bias
        neighbors = _gather_shifted(layout.hide_padding(tokens), layout.grid, kernel)
        weight = self.weight.permute(0, 2, 3, 1).reshape(out_channels, -1)
        return functional.linear(neighbors, weight, bias)

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        out_channels, in_channels, *kernel = self.weight.shape
        return f"{in_channels}, {out_channels}, kernel={tuple(kernel)}, bias={self.bias is not None}"


def _check_layout(tokens: torch.Tensor, layout: TokenLayout) -> None:
    rows, columns = layout.grid
    if rows * columns > tokens.shape[1]:
        raise ValueError(f"A grid of {rows} x {columns} needs {rows * columns} tokens, got {tokens.shape[1]}.")


def _sum_shifted(products: torch.Tensor, grid: tuple[int, int], kernel: list[int]) -> torch.Tensor:
    """Add up what every position of the kernel gives, each shifted to the token that it gives it to.

    `(batch, tokens, kernel positions, channels)` to `(batch, tokens, channels)`.
    """
    rows, columns = grid
    height, width = kernel
    center = products.shape[2] // 2
    if height * width == 1:
        return products[:, :, 0]
    num_special = products.shape[1] - rows * columns
    special, patches = products[:, :num_special, center], products[:, num_special:].unflatten(1, grid)
    padding = (0, 0, 0, 0, width // 2, width // 2, height // 2, height // 2)
    padded = functional.pad(patches, padding)
    shifted = [padded[:, i : i + rows, j : j + columns, i * width + j] for i in range(height) for j in range(width)]
    return torch.cat([special, sum(shifted[1:], start=shifted[0]).flatten(1, 2)], dim=1)


def _gather_shifted(tokens: torch.Tensor, grid: tuple[int, int], kernel: list[int]) -> torch.Tensor:
    """Put the neighbors that the kernel sees beside each token.

    `(batch, tokens, channels)` to `(batch, tokens, kernel positions * channels)`.
    """
    rows, columns = grid
    height, width = kernel
    if height * width == 1:
        return tokens
    num_positions, channels = height * width, tokens.shape[-1]
    num_special = tokens.shape[1] - rows * columns
    before = num_positions // 2 * channels
    special = functional.pad(tokens[:, :num_special], (before, num_positions * channels - before - channels))
    patches = tokens[:, num_special:].unflatten(1, grid)
    padded = functional.pad(patches, (0, 0, width // 2, width // 2, height // 2, height // 2))
    neighbors = [padded[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)]
    return torch.cat([special, torch.cat(neighbors, dim=-1).flatten(1, 2)], dim=1)
