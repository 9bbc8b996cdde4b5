"""Bottleneck adapters beside the feed-forward block and after attention (IPET, eq. 2; AAT, eq. 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Optional, TypeVar

from ..backbones.spec import Backbone, LayerModules
from ..modules import Bottleneck
from ..tuner.adapter_parts import AdapterParts, Wiring
from ..tuner.model import EncoderTuner
from ..upstream.registration import register_method
from ..utils.validation import require, require_boolean, require_choice, require_size
from .bottleneck_fields import ADAPTER_INPUTS, BottleneckFields
from .citations import AAT, IPET


@dataclass
class ParallelMLPAdapterConfig(BottleneckFields):
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
        dropout (`float`): probability of dropping an element after the activation, in training.
        adapter_input (`str`): "normalized" for LN(B), the feed-forward block's input, or "residual" for B.
        use_bias (`bool`): give the projections biases.
        spatial_adapter (`bool`): add AAT's adapter after attention, `z + Adapter(z)`.
        spatial_bottleneck_dim (`int`, *optional*): bottleneck width of the adapter after attention; None for the same.

    Raises:
        ValueError: when made with a value that breaks a rule.

    Examples:
        >>> model = ASTForAudioClassification(ASTConfig(hidden_size=12, num_hidden_layers=2))
        >>> config = peft_audio.ParallelMLPAdapterConfig(bottleneck_dim=3, modules_to_save=[])
        >>> model = get_peft_model(model, config)
        >>> trainable, total = model.get_nb_trainable_parameters()
        >>> trainable == 2 * (12 * 3 + 3 + 3 * 12 + 12)  # weights and biases of the projections
        True
    """

    learn_scaling: bool = field(default=False, metadata={"help": "Train the scaling factor."})
    adapter_input: str = field(
        default="normalized", metadata={"help": "'normalized' (the feed-forward block's input) or 'residual'."}
    )
    use_bias: bool = field(default=True, metadata={"help": "Give the projections biases."})
    spatial_adapter: bool = field(default=False, metadata={"help": "Add AAT's adapter after attention."})
    spatial_bottleneck_dim: Optional[int] = field(
        default=None, metadata={"help": "Bottleneck width of the adapter after attention; None for the same."}
    )

    method_name: ClassVar[str] = "parallel_mlp_adapter"
    summary: ClassVar[str] = "adapters beside the feed-forward blocks"
    citations: ClassVar[tuple[str, ...]] = (IPET, AAT)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_boolean("learn_scaling", self.learn_scaling)
        require_choice("adapter_input", self.adapter_input, ADAPTER_INPUTS)
        require_boolean("use_bias", self.use_bias)
        require_boolean("spatial_adapter", self.spatial_adapter)
        if self.spatial_bottleneck_dim is not None:
            require_size("spatial_bottleneck_dim", self.spatial_bottleneck_dim)
            rule = "None without `spatial_adapter=True`"
            require(self.spatial_adapter, "spatial_bottleneck_dim", rule, self.spatial_bottleneck_dim)


ParallelConfigT = TypeVar("ParallelConfigT", bound=ParallelMLPAdapterConfig)


class ParallelMLPAdapterModel(EncoderTuner[ParallelConfigT]):
    """Puts parallel adapters on a backbone; see `ParallelMLPAdapterConfig`."""

    prefix = "parallel_mlp_adapter_"

    def build_parts(self, config: ParallelConfigT, backbone: Backbone, modules: LayerModules) -> AdapterParts:
        """Return the adapters for one layer; see `EncoderTuner.build_parts`."""
        width = config.width(backbone.hidden_size)
        parts = super().build_parts(config, backbone, modules)
        if config.spatial_adapter:
            spatial = _bottleneck(config, backbone, config.spatial_bottleneck_dim or width)
            parts = parts._replace(attention_adapter=spatial, attention_wiring=Wiring("output"))
        mlp = _bottleneck(config, backbone, width)
        return parts._replace(mlp_adapter=mlp, mlp_wiring=Wiring(config.adapter_input))


def _bottleneck(config: ParallelMLPAdapterConfig, backbone: Backbone, width: int) -> Bottleneck:
    return Bottleneck(
        backbone.hidden_size,
        width,
        config.make_activation(),
        scaling=config.scaling,
        learn_scaling=config.learn_scaling,
        dropout=config.dropout,
        bias=config.use_bias,
        init_weights=config.init_weights,
    )


register_method(ParallelMLPAdapterConfig, ParallelMLPAdapterModel)
