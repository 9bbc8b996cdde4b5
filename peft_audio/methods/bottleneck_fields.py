"""What the methods with bottleneck adapters share: fields, and how an adapter joins a layer's parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from torch import nn
from transformers.activations import ACT2FN

from ..config import EncoderAdapterConfig
from ..tuner.adapter_parts import AdapterParts, Wiring
from ..utils.validation import (
    is_number,
    require,
    require_finite_number,
    require_probability,
    require_size,
)


ADAPTER_INPUTS = ("normalized", "residual")


@dataclass
class BottleneckFields(EncoderAdapterConfig):
    """Size, activation, scale and dropout of a bottleneck: base class of the configurations that have one.

    Args:
        bottleneck_dim (`int`): width of the bottleneck.
        reduction_factor (`float`, *optional*): instead of `bottleneck_dim`, hidden size divided by the width.
        activation (`str`): a name of transformers' `ACT2FN`.
        scaling (`float`): factor on the adapter's output.
        dropout (`float`): probability of dropping an element before the last projection, in training.

    Raises:
        ValueError: when made with a value that breaks a rule.
    """

    bottleneck_dim: int = field(default=64, metadata={"help": "Width of the bottleneck."})
    reduction_factor: Optional[float] = field(
        default=None, metadata={"help": "Instead of bottleneck_dim: hidden size divided by the width."}
    )
    activation: str = field(default="relu", metadata={"help": "Name of an activation in transformers' ACT2FN."})
    scaling: float = field(default=1.0, metadata={"help": "Factor on the adapter's output."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout probability before the last projection."})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_size("bottleneck_dim", self.bottleneck_dim)
        if self.reduction_factor is not None:
            require_factor(self.reduction_factor, "None or a number of at least 1")
            default = type(self).__dataclass_fields__["bottleneck_dim"].default
            rule = "left out where `reduction_factor` is given, which takes its place"
            require(self.bottleneck_dim == default, "bottleneck_dim", rule, self.bottleneck_dim)
        require_activation(self.activation)
        require_finite_number("scaling", self.scaling)
        self.scaling = float(self.scaling)  # torch takes no integer of this size
        require(self.scaling != 0, "scaling", "other than 0, which would give the adapter no gradient", self.scaling)
        require_probability("dropout", self.dropout)

    def width(self, hidden_size: int) -> int:
        """Return the width of the bottleneck on a model of `hidden_size`.

        Raises:
            ValueError: if `reduction_factor` is larger than `hidden_size`.
        """
        if self.reduction_factor is None:
            return self.bottleneck_dim
        return width_of(hidden_size, self.reduction_factor)

    def make_activation(self) -> nn.Module:
        """Return a new module of the activation."""
        return make_activation(self.activation)


def require_factor(factor: Any, rule: str) -> None:
    """Raise ValueError unless `reduction_factor` is a number of at least 1, which is what `rule` says."""
    require(is_number(factor) and factor >= 1, "reduction_factor", rule, factor)


def require_activation(name: Any) -> None:
    """Raise ValueError unless `activation` is a name in transformers' `ACT2FN`."""
    require(isinstance(name, str) and name in ACT2FN, "activation", f"one of {', '.join(sorted(ACT2FN))}", name)


def width_of(hidden_size: int, reduction_factor: float) -> int:
    """Return the hidden size divided by the factor, rounded down.

    Raises:
        ValueError: if `reduction_factor` is larger than `hidden_size`.
    """
    width = int(hidden_size / reduction_factor)
    require(width > 0, "reduction_factor", f"at most the hidden size ({hidden_size})", reduction_factor)
    return width


def make_activation(name: str) -> nn.Module:
    """Return a new module of the activation."""
    return ACT2FN[name]


def with_adapter(parts: AdapterParts, block: str, adapter: nn.Module, wiring: Wiring) -> AdapterParts:
    """Return `parts` with an adapter at the "attention" or the "mlp" block."""
    if block == "attention":
        return parts._replace(attention_adapter=adapter, attention_wiring=wiring)
    return parts._replace(mlp_adapter=adapter, mlp_wiring=wiring)
