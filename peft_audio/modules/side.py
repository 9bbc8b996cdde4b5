"""A side network beside a frozen encoder: one block for each encoder layer that it reads, and the way back to full width."""

from __future__ import annotations

from typing import Optional

import torch
from torch import nn
from torch.nn import functional

from .adapter_module import AdapterModule, TokenLayout, in_dtype_of
from .initial import RANDOM_INIT_STD
from .mixers import TokenMixer


GATE_TEMPERATURE = 0.1  # the paper's


class SideBlock(AdapterModule):
    """Takes an encoder layer's output h into the state s of a side network, and transforms the state.

    `z = g * down(LN(h)) + (1 - g) * s` with `g = sigmoid(alpha / T)`, T = 0.1, then `z + mix(LN(z))` where there is a mixer,
    and `z + W_2 act(W_1 LN(z))` of width w, 2w, w. alpha starts at zero, which takes half of either. Source: Sung et al.,
    "LST: ladder side-tuning", 2022, section 3.2. The norm of h has no weights: those of the projection behind it do for both.

    Args:
        hidden_size: width d of the encoder's tokens.
        width: width w of the side network.
        num_gates: 1 for one gate, `width` for one for each channel.
        activation: element-wise module.
        mixer: mixes the tokens; None for a block that works on each token alone.
        dropout: probability of dropping an element after the activation, in training.
        init_weights: False draws the gates at random.
    """

    def __init__(
        self,
        hidden_size: int,
        width: int,
        num_gates: int,
        activation: nn.Module,
        mixer: Optional[TokenMixer] = None,
        dropout: float = 0.0,
        init_weights: bool = True,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, width)
        self.gate = nn.Parameter(torch.empty(num_gates))
        self.mixer_norm = None if mixer is None else nn.LayerNorm(width)
        self.mixer = mixer
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.narrow = nn.Linear(2 * width, width)
        nn.init.zeros_(self.gate) if init_weights else nn.init.normal_(self.gate, std=RANDOM_INIT_STD)

    @property
    def reads_neighbors(self) -> bool:
        """Whether the block has a mixer."""
        return self.mixer is not None

    def forward(
        self,
        hidden_states: torch.Tensor,
        layout: Optional[TokenLayout] = None,
        state: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Return the new state, `(batch, tokens, width)`, in the dtype of the weights or autocast's.

        Args:
            hidden_states: what the encoder layer gives, `(batch, tokens, hidden_size)`.
            layout: of the tokens; a mixer needs it.
            state: what the block before has returned; None for zeros.
        """
        inputs = self.cast_input(hidden_states, self.down.weight)
        gate = torch.sigmoid(self.gate / GATE_TEMPERATURE)
        taken = gate * self.down(functional.layer_norm(inputs, inputs.shape[-1:]))
        state = taken if state is None else taken + (1 - gate) * state
        if self.mixer is not None and self.mixer_norm is not None:
            state = state + self.mixer(self.mixer_norm(state), layout or TokenLayout((1, state.shape[1])))
        return state + self.narrow(self.dropout(self.activation(self.widen(self.norm(state)))))


class SideOutput(AdapterModule):
    """What a side network's state adds to the encoder's output, `up(LN(s))`: zero until the first optimizer step.

    Args:
        width: width w of the side network.
        hidden_size: width d of the encoder's tokens.
        init_weights: False draws the projection at random.
    """

    def __init__(self, width: int, hidden_size: int, init_weights: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden_size)
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter) if init_weights else nn.init.normal_(parameter, std=RANDOM_INIT_STD)

    @property
    def reads_neighbors(self) -> bool:
        """False: it works on each token alone."""
        return False

    def forward(
        self,
        hidden_states: torch.Tensor,
        layout: Optional[TokenLayout] = None,
        state: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Map the state, `(batch, tokens, width)`, to `(batch, tokens, hidden_size)`, in the dtype of `hidden_states`.

        Raises:
            ValueError: without a state.
        """
        if state is None:
            raise ValueError("`state` must be what a SideBlock has returned, got None.")
        return in_dtype_of(hidden_states, self.up(self.norm(self.cast_input(state, self.up.weight))))
