"""How the attention modules of an architecture are called."""

from __future__ import annotations

from typing import NamedTuple, Optional

from ..backbones.relative_positions import PositionRule


class Conventions(NamedTuple):
    """What a row says of how attention is called, see `EncoderSpec`. The row itself may hold what cannot be pickled."""

    batch_first: bool
    padding_mask: Optional[str]
    positions: Optional[PositionRule]
    read_tokens: Optional[int]

    @property
    def mask_name(self) -> str:
        """Name of attention's argument that is the mask."""
        return self.padding_mask or "attention_mask"

    @property
    def true_is_padding(self) -> bool:
        """Whether the mask has fairseq's form, True for padding."""
        return self.padding_mask is not None
