"""Projections with a factor on what they give."""

from __future__ import annotations

from typing import Optional, Union

import torch
from torch import nn
from torch.nn import functional


Factor = Union[float, torch.Tensor]


def scaled(tensor: Optional[torch.Tensor], factor: Factor) -> Optional[torch.Tensor]:
    """Return `tensor * factor`, and `tensor` itself for a factor that is fixed at 1 or where there is none."""
    is_one = isinstance(factor, (int, float)) and factor == 1
    return tensor if tensor is None or is_one else tensor * factor


class ScaledLinear(nn.Linear):
    """Linear map `s (x W + b)`. The factor goes onto x and b: where the map widens its input, they are small."""

    def forward(self, tokens: torch.Tensor, factor: Factor = 1.0) -> torch.Tensor:
        """Map `(batch, tokens, in_features)` to `(batch, tokens, out_features)`, times `factor`, a number or a scalar."""
        return functional.linear(scaled(tokens, factor), self.weight, scaled(self.bias, factor))
