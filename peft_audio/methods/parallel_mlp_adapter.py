"""Bottleneck adapters beside the feed-forward block and after attention (IPET, eq. 2; AAT, eq. 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Optional

from transformers.activations import ACT2FN

from ..backbones import Backbone
from ..config import EncoderAdapterConfig
from ..layer import AdapterParts
from ..model import EncoderTuner
from ..modules import Bottleneck
from ..registry import register_method
from ..validation import (
    is_number,
    require,
    require_boolean,
    require_choice,
    require_finite_number,
    require_positive_integer,
    require_probability,
)


ADAPTER_INPUTS = ("normalized", "residual")


@dataclass
class ParallelMLPAdapterConfig(EncoderAdapterConfig):
    """Configuration of the adapter in parallel with the feed-forward block.

    `y = MLP(LN(B)) + B + s (act(input W_down + b) W_up + b')`, with B the residual stream after attention. Sources:
    Kim et al., "Integrated parameter-efficient tuning for general-purpose audio models", 2023, eq. 2 (input B); Liang et
    al., "AAT: adapting audio transformer for various acoustics recognition tasks", 2024, eq. 3 and 4 (input LN(B), and
    the spatial adapter).

    Args:
        bottleneck_dim (`int`): width of the bottleneck (h).
        reduction_factor (`float`, *optional*): instead of `bottleneck_dim`, hidden size divided by the width.
        activation (`str`): a name of transformers' `ACT2FN`.
        scaling (`float`): the factor s.
        learn_scaling (`bool`): train s, starting from `scaling`, one per layer and adapter.
        dropout (`float`): probability of dropping an element after the activation in training.
        adapter_input (`str`): "normalized" for LN(B), what the feed-forward block reads, or "residual" for B.
        use_bias (`bool`): give the projections biases.
        spatial_adapter (`bool`): add AAT's adapter after attention, `z + Adapter(z)`.
        spatial_bottleneck_dim (`int`, *optional*): its width; None for that of the other.

    Raises:
        ValueError: when made with a value that breaks a rule.
    """

    bottleneck_dim: int = field(default=64, metadata={"help": "Width of the bottleneck."})
    reduction_factor: Optional[float] = field(
        default=None, metadata={"help": "Instead of bottleneck_dim: hidden size divided by the width."}
    )
    activation: str = field(default="relu", metadata={"help": "Name of an activation in transformers' ACT2FN."})
    scaling: float = field(default=1.0, metadata={"help": "Factor on the adapter's output."})
    learn_scaling: bool = field(default=False, metadata={"help": "Train the factor."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout between the two projections."})
    adapter_input: str = field(
        default="normalized", metadata={"help": "'normalized' (the feed-forward block's input) or 'residual'."}
    )
    use_bias: bool = field(default=True, metadata={"help": "Give the projections biases."})
    spatial_adapter: bool = field(default=False, metadata={"help": "Add AAT's adapter after attention."})
    spatial_bottleneck_dim: Optional[int] = field(
        default=None, metadata={"help": "Width of the adapter after attention; None for that of the other."}
    )

    method_name: ClassVar[str] = "parallel_mlp_adapter"

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
        require_boolean("learn_scaling", self.learn_scaling)
        require_probability("dropout", self.dropout)
        require_choice("adapter_input", self.adapter_input, ADAPTER_INPUTS)
        require_boolean("use_bias", self.use_bias)
        require_boolean("spatial_adapter", self.spatial_adapter)
        if self.spatial_bottleneck_dim is not None:
            require_positive_integer("spatial_bottleneck_dim", self.spatial_bottleneck_dim)
            rule = "None without `spatial_adapter=True`"
            require(self.spatial_adapter, "spatial_bottleneck_dim", rule, self.spatial_bottleneck_dim)

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


class ParallelMLPAdapterModel(EncoderTuner):
    """Puts parallel adapters on a backbone; see `ParallelMLPAdapterConfig`."""

    prefix = "parallel_mlp_adapter_"

    def build_parts(self, config: ParallelMLPAdapterConfig, backbone: Backbone) -> AdapterParts:
        width = config.width(backbone.hidden_size)
        parts = super().build_parts(config, backbone)
        if config.spatial_adapter:
            spatial_width = config.spatial_bottleneck_dim or width
            parts = parts._replace(attention_adapter=_bottleneck(config, backbone, spatial_width))
        return parts._replace(mlp_adapter=_bottleneck(config, backbone, width), mlp_adapter_input=config.adapter_input)


def _bottleneck(config: ParallelMLPAdapterConfig, backbone: Backbone, width: int) -> Bottleneck:
    return Bottleneck(
        backbone.hidden_size,
        width,
        ACT2FN[config.activation],
        scaling=config.scaling,
        learn_scaling=config.learn_scaling,
        dropout=config.dropout,
        bias=config.use_bias,
        init_weights=config.init_weights,
    )


register_method(ParallelMLPAdapterConfig, ParallelMLPAdapterModel)
