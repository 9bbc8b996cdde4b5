"""What an adapter adds to an encoder layer, and what the layer's hooks leave for each other while it runs."""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from torch import nn

from ..modules import EmbeddingPrompt
from ..utils.per_thread import PerThread


class Wiring(NamedTuple):
    """How an adapter is connected to a block of the layer, with h what the block reads and z what it gives.

    Attributes:
        input: what the adapter reads: "normalized" for h, "residual" for h before its norm, "output" for z.
        shortcut: add the adapter's own input to what it gives.
        replace: the adapter's output takes the place of z; else it is added to z.
    """

    input: str = "normalized"
    shortcut: bool = False
    replace: bool = False


class AdapterParts(NamedTuple):
    """What one adapter adds to one encoder layer; None where it adds nothing.

    Attributes:
        prompt: tokens that take part in the layer's attention, as keys and values only.
        attention_norm: the layer's norm before attention, with weights of the adapter's own.
        attention_adapter: connected to the attention block as `attention_wiring` says.
        mlp_norm: the norm before the feed-forward block, with weights of the adapter's own.
        mlp_adapter: connected to the feed-forward block as `mlp_wiring` says.
    """

    prompt: Optional[EmbeddingPrompt] = None
    attention_norm: Optional[nn.Module] = None
    attention_adapter: Optional[nn.Module] = None
    mlp_norm: Optional[nn.Module] = None
    mlp_adapter: Optional[nn.Module] = None
    attention_wiring: Wiring = Wiring()
    mlp_wiring: Wiring = Wiring()


PARTS = ("prompt", "attention_norm", "attention_adapter", "mlp_norm", "mlp_adapter")


class BlockInput(NamedTuple):
    """What a block reads, before (`residual`) and after its norm, `(batch, tokens, hidden_size)` both."""

    residual: torch.Tensor
    normalized: torch.Tensor


class LayerPass(PerThread):
    """One forward pass through the layer.

    Attributes:
        grid: rows and columns of the patches, None on a backbone without.
        mask: the attention mask.
        attention_residual: what the norm before attention reads.
        attention_input: what attention reads.
        mlp_input: what the feed-forward block reads.
        num_prompts: number of prompts that attention is given.
        num_read: number of tokens, the first ones, whose output is read later on; None for all.
        unread: the input of the other tokens, while their output is left out.
    """

    def __init__(self) -> None:
        self.num_prompts = 0
        self.num_read: Optional[int] = None
        self.unread: Optional[torch.Tensor] = None
        self.grid: Optional[tuple[int, int]] = None
        self.mask: Optional[torch.Tensor] = None
        self.attention_residual: Optional[torch.Tensor] = None
        self.attention_input: Optional[BlockInput] = None
        self.mlp_input: Optional[BlockInput] = None
