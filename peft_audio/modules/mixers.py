"""What mixes the narrow tokens of a side network: a depthwise convolution over their grid, or attention."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from .adapter_module import TokenLayout


HEADS = (4, 2, 1)


class TokenMixer(nn.Module):
    """Base class: maps `(batch, tokens, width)` and a layout to the same shape. It reads nothing from padding."""

    def forward(self, tokens: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        """Map `(batch, tokens, width)` to the same shape.

        Raises:
            NotImplementedError: in a subclass that does not implement it.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement forward(tokens, layout).")


class DepthwiseConv(TokenMixer):
    """Convolves each channel over the grid of the tokens, with zeros at its edges and in place of padding.

    Special tokens are not part of the grid, but they are what the head of a spectrogram transformer reads. Each gets the
    kernel's center times itself, and the mean of what the convolution gives on the grid.

    Args:
        width: number of channels.
        kernel: kernel size along (frequency, time), odd numbers.
    """

    def __init__(self, width: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(width, 1, *kernel))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, tokens: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        """Map `(batch, tokens, width)` to the same shape."""
        height, width = self.kernel
        num_special = tokens.shape[1] - layout.grid[0] * layout.grid[1]
        special, patches = tokens[:, :num_special], layout.hide_padding(tokens)[:, num_special:]
        grid = patches.transpose(1, 2).unflatten(2, layout.grid)
        padding, channels = (height // 2, width // 2), tokens.shape[2]
        convolved = functional.conv2d(grid, self.weight, padding=padding, groups=channels).flatten(2).transpose(1, 2)
        if num_special == 0:
            return convolved
        special = special * self.weight[:, 0, height // 2, width // 2] + _mean(convolved, layout, num_special)
        return torch.cat([special, convolved], dim=1)

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"{len(self.weight)}, kernel={self.kernel}"


def _mean(tokens: torch.Tensor, layout: TokenLayout, num_special: int) -> torch.Tensor:
    """Return the mean over the grid's tokens that are no padding, `(batch, 1, width)`."""
    if layout.mask is None:
        return tokens.mean(dim=1, keepdim=True)
    weights = layout.mask[:, num_special:, None].to(tokens.dtype)
    return (tokens * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True).clamp_min(1)


class NarrowAttention(TokenMixer):
    """Self-attention of four heads, or two or one where the width asks for it. The encoder has told the tokens their places.

    Args:
        width: width of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = next(heads for heads in HEADS if width % heads == 0)
        self.qkv = nn.Linear(width, 3 * width, bias=False)  # a bias of keys changes nothing and gets no gradient
        self.project = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        """Map `(batch, tokens, width)` to the same shape."""
        queries, keys, values = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if layout.mask is None else layout.mask[:, None, None]
        attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.project(attended.transpose(1, 2).flatten(2))
