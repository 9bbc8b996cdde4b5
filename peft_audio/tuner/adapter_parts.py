"""What an adapter adds to an encoder layer, and how it is connected there."""

from __future__ import annotations

from typing import NamedTuple, Optional

from torch import nn

from ..modules import EmbeddingPrompt


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
        attention_adapter: connected to the attention block as `attention_wiring` says, an `AdapterModule`.
        mlp_norm: the norm before the feed-forward block, with weights of the adapter's own.
        mlp_adapter: connected to the feed-forward block as `mlp_wiring` says, an `AdapterModule`.
    """

    prompt: Optional[EmbeddingPrompt] = None
    attention_norm: Optional[nn.Module] = None
    attention_adapter: Optional[nn.Module] = None
    mlp_norm: Optional[nn.Module] = None
    mlp_adapter: Optional[nn.Module] = None
    attention_wiring: Wiring = Wiring()
    mlp_wiring: Wiring = Wiring()


PARTS = ("prompt", "attention_norm", "attention_adapter", "mlp_norm", "mlp_adapter")
# Those that change tokens; the others change none by themselves.
ADAPTERS = ("attention_adapter", "mlp_adapter")
