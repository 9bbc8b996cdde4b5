"""The trainable building blocks, in plain torch: nothing here knows a model, PEFT or Hugging Face."""

from __future__ import annotations

import math

import torch
from torch import nn


# Standard deviation of the random weights that `init_weights=False` asks for: large enough that an adapter which is
# wired wrongly shows in the output, small enough that deep models stay finite.
RANDOM_INIT_STD = 0.05


def xavier_uniform_bound(num_tokens: int, hidden_size: int) -> float:
    """Bound of Xavier's uniform distribution for a `(1, num_tokens, hidden_size)` tensor (IPET's initialisation)."""
    return math.sqrt(6.0 / (hidden_size * num_tokens + hidden_size))


def vpt_bound(patch_size: int, hidden_size: int) -> float:
    """Bound of the uniform distribution that visual prompt tuning draws prompts from (three input channels)."""
    return math.sqrt(6.0 / (3 * patch_size**2 + hidden_size))


class EmbeddingPrompt(nn.Module):
    """Learnable tokens of one encoder layer (IPET, eq. 1).

    Args:
        num_tokens: number of prompt tokens k.
        hidden_size: width d of the encoder's tokens.
        bound: the tokens start uniformly distributed in [-bound, bound].
        dropout: probability of dropping an element of the prompt, per sample, in training.
    """

    def __init__(self, num_tokens: int, hidden_size: int, bound: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.bound = bound
        self.embeddings = nn.Parameter(torch.empty(num_tokens, hidden_size))
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.embeddings, -self.bound, self.bound)

    def forward(self, batch_size: int) -> torch.Tensor:
        """Return the prompt, of shape `(1, num_tokens, hidden_size)`, or `(batch_size, ...)` where dropout is at work.

        One row stands for the whole batch as long as the samples share it, so that what follows is computed once.
        """
        if self.training and self.dropout.p > 0:
            return self.dropout(self.embeddings.expand(batch_size, -1, -1))
        return self.embeddings.unsqueeze(0)

    def extra_repr(self) -> str:
        return f"num_tokens={self.num_tokens}, hidden_size={self.embeddings.shape[1]}"


class Bottleneck(nn.Module):
    """Down projection, activation, up projection: `s * (act(x W_down + b) W_up + b')` (IPET, eq. 2; AAT, eq. 3).

    W_down starts Kaiming uniform; W_up and both biases start at zero, so the block returns exactly zero until the
    first optimiser step while W_up receives a gradient from the first backward pass.

    Args:
        hidden_size: width d of the tokens.
        bottleneck_dim: width of the space in between.
        activation: element-wise module.
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
        scaling: float = 1.0,
        learn_scaling: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        init_weights: bool = True,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, bottleneck_dim, bias=bias)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(bottleneck_dim, hidden_size, bias=bias)
        self.scaling = nn.Parameter(torch.tensor(float(scaling))) if learn_scaling else scaling
        self.reset_parameters(init_weights)

    def reset_parameters(self, init_weights: bool = True) -> None:
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

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map `(..., hidden_size)` to `(..., hidden_size)`, in the input's dtype."""
        inputs = hidden_states
        if not torch.is_autocast_enabled(hidden_states.device.type):
            inputs = hidden_states.to(self.down.weight.dtype)
        outputs = self.up(self.dropout(self.activation(self.down(inputs)))) * self.scaling
        return outputs.to(hidden_states.dtype)
