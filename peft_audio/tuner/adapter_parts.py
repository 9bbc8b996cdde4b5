"""What an adapter adds to an encoder layer, and how it is connected there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Optional

import torch
from torch import nn

from ..modules import EmbeddingPrompt, TokenLayout
from ..modules.adapter_module import check_result


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
        side: beside the encoder, `(layer's output, layout, state) -> state`: an `AdapterModule` whose state goes on to the
            `side` of the next layer that the adapter has one in. The first gets None.
        side_output: in the last encoder layer, `(layer's output, layout, state) -> what is added to that output`.
    """

    prompt: Optional[EmbeddingPrompt] = None
    attention_norm: Optional[nn.Module] = None
    attention_adapter: Optional[nn.Module] = None
    mlp_norm: Optional[nn.Module] = None
    mlp_adapter: Optional[nn.Module] = None
    side: Optional[nn.Module] = None
    side_output: Optional[nn.Module] = None
    attention_wiring: Wiring = Wiring()
    mlp_wiring: Wiring = Wiring()


AT_THE_END = "side_output"  # in the last encoder layer, whichever layers are adapted
BESIDE = ("side", AT_THE_END)  # what acts on a layer's output and not within the layer
WITHIN = ("prompt", "attention_norm", "attention_adapter", "mlp_norm", "mlp_adapter")
PARTS = (*WITHIN, *BESIDE)
# Those that read tokens one by one or together; the others change none by themselves.
ADAPTERS = ("attention_adapter", "mlp_adapter", "side")


def with_adapters(
    block: str,
    adapters: Sequence[tuple[str, nn.Module]],
    wirings: Mapping[str, Wiring],
    sources: Mapping[str, torch.Tensor],
    layout: TokenLayout,
) -> torch.Tensor:
    """Return a block's output with adapters connected to the block, whose outputs add up.

    Args:
        block: "attention" or "mlp".
        adapters: the modules with the adapters' names.
        wirings: by adapter.
        sources: `(batch, tokens, d)` each, by the names that `Wiring.input` has.
        layout: of the tokens.

    Raises:
        ValueError: one of several adapters takes the place of the block's output, or a module breaks its contract.
    """
    names, output = [name for name, _ in adapters], sources["output"]
    replacing = [name for name in names if wirings[name].replace]
    if replacing and len(adapters) > 1:
        raise ValueError(
            f"Adapter {replacing[0]!r} takes the place of the output of every {block} block (placement='sequential' "
            f"without residual), so no other can be active with it, got {names}. Activate one at a time."
        )
    adapted = None if replacing else output
    for name, adapter in adapters:
        source = sources[wirings[name].input]
        added = adapter(source, layout)
        check_result(adapter, source, added)
        adapted = added if adapted is None else adapted + added
        if wirings[name].shortcut:
            adapted = adapted + source
    return output if adapted is None else adapted
