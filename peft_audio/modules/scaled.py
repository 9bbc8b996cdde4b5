"""Projections with a factor on what they give."""

from __future__ import annotations

from typing import Union

import torch
from torch import nn
from torch.nn import functional


Factor = Union[float, torch.Tensor]


def scaled(tensor: torch.Tensor, factor: Factor) -> torch.Tensor:
    """Return `tensor * factor`, and `tensor` itself for a factor that is fixed at 1."""
    is_one = isinstance(factor, (int, float)) and factor == 1
    return tensor if is_one else tensor * factor


class ScaledLinear(nn.Linear):
    """Linear map `s (x W + b)`. It multiplies x and b, which are smaller than the result of an up projection."""

    def forward(self, tokens: torch.Tensor, factor: Factor = 1.0) -> torch.Tensor:
        """Map `(batch, tokens, in_features)` to `(batch, tokens, out_features)`, times `factor`, a number or a scalar."""
        bias = None if self.bias is None else scaled(self.bias, factor)
        return functional.linear(scaled(tokens, factor), self.weight, bias)
