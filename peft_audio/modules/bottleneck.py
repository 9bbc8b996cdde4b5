"""The bottleneck adapter, of linear maps or of convolutions."""

from __future__ import annotations

import math
from typing import Optional, Union

import torch
from torch import nn

from .adapter_module import AdapterModule, TokenLayout, in_dtype_of
from .grid_conv import GridConv
from .initial import RANDOM_INIT_STD
from .scaled import Factor, ScaledLinear


Projection = Union[ScaledLinear, GridConv]


class Bottleneck(AdapterModule):
    """Down projection, activation, up projection: `s * (act(x W_down + b) W_up + b')`.

    Linear maps (IPET, eq. 2; AAT, eq. 3), or convolutions over the token grid (LoAA, eq. 2). W_down starts Kaiming
    uniform; W_up and both biases start at zero, so the block returns exactly zero until the first optimizer step while
    W_up receives a gradient from the first backward pass.

    Args:
        hidden_size: width d of the tokens.
        bottleneck_dim: width of the bottleneck.
        activation: element-wise module.
        kernel: kernel size along (frequency, time) of both projections; None for linear maps.
        scaling: the factor s.
        learn_scaling: train s, starting from `scaling`.
        dropout: probability of dropping an element after the activation, in training.
        bias: give both projections a bias.
        init_weights: False draws every weight at random, so that the block changes its input from the start.
    """

    def __init__(
        self,
        hidden_size: int,
        bottleneck_dim: int,
        activation: nn.Module,
        kernel: Optional[tuple[int, int]] = None,
        scaling: float = 1.0,
        learn_scaling: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        init_weights: bool = True,
    ) -> None:
        super().__init__()
        self.down = _projection(hidden_size, bottleneck_dim, kernel, bias)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.up = _projection(bottleneck_dim, hidden_size, kernel, bias)
        self.scaling: Factor = nn.Parameter(torch.tensor(float(scaling))) if learn_scaling else scaling
        self.reset_parameters(init_weights)

    def reset_parameters(self, init_weights: bool = True) -> None:
        """Draw fresh weights, as in the class's docstring; `init_weights=False` draws all of them at random."""
        if not init_weights:
            for projection in (self.down, self.up):
                for parameter in projection.parameters():
                    nn.init.normal_(parameter, std=RANDOM_INIT_STD)
            return
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)
        for projection in (self.down, self.up):
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    @property
    def reads_neighbors(self) -> bool:
        """Whether the projections are convolutions."""
        return isinstance(self.down, GridConv)

    @property
    def special_tokens_stand_alone(self) -> bool:
        """True: linear maps mix no tokens, and convolutions mix only tokens of the grid."""
        return True

    def forward(self, hidden_states: torch.Tensor, layout: Optional[TokenLayout] = None) -> torch.Tensor:
        """Map `(batch, tokens, hidden_size)` to the same shape, in the input's dtype or autocast's.

        Convolutions need `layout`.

        Raises:
            ValueError: without a layout, for convolutions.
        """
        inputs = self.cast_input(hidden_states, self.down.weight)
        hidden = self.dropout(self.activation(_project(self.down, inputs, layout)))
        return in_dtype_of(hidden_states, _project(self.up, hidden, layout, self.scaling))


def _projection(width_in: int, width_out: int, kernel: Optional[tuple[int, int]], bias: bool) -> Projection:
    if kernel is None:
        return ScaledLinear(width_in, width_out, bias=bias)
    return GridConv(width_in, width_out, kernel, bias=bias)


def _project(
    projection: Projection, tokens: torch.Tensor, layout: Optional[TokenLayout], factor: Factor = 1.0
) -> torch.Tensor:
    if not isinstance(projection, GridConv):
        return projection(tokens, factor)
    if layout is None:
        raise ValueError("`layout` must be a TokenLayout for a bottleneck of convolutions, got None.")
    return projection(tokens, layout, factor)
