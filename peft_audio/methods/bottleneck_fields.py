"""The fields that every method with bottlenecks shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from torch import nn
from transformers.activations import ACT2FN

from ..config import EncoderAdapterConfig
from ..utils.validation import (
    is_number,
    require,
    require_finite_number,
    require_positive_integer,
    require_probability,
)


ADAPTER_INPUTS = ("normalized", "residual")


@dataclass
class BottleneckFields(EncoderAdapterConfig):
    """Size and inner life of a bottleneck; base class of the configurations of methods that have one.

    Args:
        bottleneck_dim (`int`): width of the bottleneck.
        reduction_factor (`float`, *optional*): instead of `bottleneck_dim`, hidden size divided by the width.
        activation (`str`): a name of transformers' `ACT2FN`.
        scaling (`float`): factor on the adapter's output.
        dropout (`float`): probability of dropping an element in front of the last projection, in training.

    Raises:
        ValueError: when made with a value that breaks a rule.
    """

    bottleneck_dim: int = field(default=64, metadata={"help": "Width of the bottleneck."})
    reduction_factor: Optional[float] = field(
        default=None, metadata={"help": "Instead of bottleneck_dim: hidden size divided by the width."}
    )
    activation: str = field(default="relu", metadata={"help": "Name of an activation in transformers' ACT2FN."})
    scaling: float = field(default=1.0, metadata={"help": "Factor on the adapter's output."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout between the two projections."})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive_integer("bottleneck_dim", self.bottleneck_dim)
        if self.reduction_factor is not None:
            factor = self.reduction_factor
            require(is_number(factor) and factor >= 1, "reduction_factor", "None or a number of at least 1", factor)
        known = isinstance(self.activation, str) and self.activation in ACT2FN
        require(known, "activation", f"one of {', '.join(sorted(ACT2FN))}", self.activation)
        require_finite_number("scaling", self.scaling)
        require(self.scaling != 0, "scaling", "other than 0, which would give the adapter no gradient", self.scaling)
        require_probability("dropout", self.dropout)

    def width(self, hidden_size: int) -> int:
        """Return the width of the bottleneck on a model of `hidden_size`.

        Raises:
            ValueError: if `reduction_factor` leaves no width.
        """
        if self.reduction_factor is None:
            return self.bottleneck_dim
        width = int(hidden_size / self.reduction_factor)
        rule = f"at most the hidden size ({hidden_size})"
        require(width > 0, "reduction_factor", rule, self.reduction_factor)
        return width

    def make_activation(self) -> nn.Module:
        return ACT2FN[self.activation]
