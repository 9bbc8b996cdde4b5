"""The way beside the encoder: parts of adapters that read what layers give, and hand a state on from layer to layer.

A part `side` of a layer takes the layer's output into the state that the adapter's `side` on an earlier layer has left. In
the last encoder layer `side_output` turns the state into what is added to that layer's output. Both act when the layer has
run, and so outside of what gradient checkpointing runs again: a frozen encoder keeps nothing for the backward pass.

States belong to the call of the encoder (`PassState.side_states`), and each to one adapter, with the rows of its samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

import torch
from torch import nn

from ..modules import TokenLayout
from ..modules.adapter_module import check_result, special_tokens_stand_alone


States = dict[str, torch.Tensor]
Modules = Sequence[tuple[str, nn.Module]]


class SideCall(NamedTuple):
    """One layer's turn on the way.

    Attributes:
        states: of the running pass; they are updated.
        grid: rows and columns of the layer's tokens.
        num_read: number of tokens, the first ones, that the encoder's output is read in; None for all.
    """

    states: States
    grid: tuple[int, int]
    num_read: Optional[int]

    def take_in(self, modules: Modules, tokens: torch.Tensor, mask: Optional[torch.Tensor]) -> None:
        """Take a layer's output, `(samples, tokens, d)`, into the states of the adapters that have `modules`.

        Args:
            modules: the adapters' parts, by name.
            tokens: what the layer gives for their samples.
            mask: `(samples, tokens)`, False for padding; None without.
        """
        for name, module in modules:
            state = self.states.get(name)
            size = tokens.shape[1]
            if state is not None:
                state = state[:, :size].to(tokens.device)
                size = state.shape[1]
            elif self.num_read is not None and special_tokens_stand_alone(module):
                size = min(self.num_read, size)  # no later layer needs the others
            is_whole = size == tokens.shape[1]
            layout = TokenLayout(self.grid, mask) if is_whole else TokenLayout((1, 0))
            self.states[name] = module(tokens if is_whole else tokens[:, :size], layout, state)

    def num_left(self, tokens: torch.Tensor) -> int:
        """Return the number of tokens, the first ones, that are left of the last layer's `(batch, tokens, d)`."""
        sizes = [tokens.shape[1], *(state.shape[1] for state in self.states.values())]
        return min(sizes if self.num_read is None else [*sizes, self.num_read])

    def add(self, modules: Modules, tokens: torch.Tensor) -> torch.Tensor:
        """Return the last layer's output, `(samples, tokens, d)`, with what the states of these adapters add."""
        total = tokens
        for name, module in modules:
            state = self.states.get(name)
            if state is not None:  # other layers' adapters may be disabled
                added = module(tokens, None, state[:, : tokens.shape[1]].to(tokens.device))
                check_result(module, tokens, added)
                total = total + added
        return total


def states_of_pass(states: Optional[States]) -> States:
    """Return the states of a running pass.

    Raises:
        RuntimeError: there is none.
    """
    if states is None:
        raise RuntimeError(
            "This encoder layer was run outside of a pass of its model, so what its side network has made of the layers "
            "before is not known. Run the whole model; for gradient checkpointing call its "
            "`gradient_checkpointing_enable()`."
        )
    return states
