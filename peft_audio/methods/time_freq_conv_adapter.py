"""Convolutional adapters over time and frequency (look-aside adapters, LoAA)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional, Union

from ..backbones.spec import Backbone, LayerModules
from ..modules import Bottleneck
from ..tuner.adapter_parts import AdapterParts, Wiring
from ..tuner.model import EncoderTuner
from ..upstream.registration import register_method
from ..utils.validation import is_integer, require, require_boolean, require_choice
from .bottleneck_fields import ADAPTER_INPUTS, BottleneckFields, with_adapter
from .citations import LOAA


Kernel = tuple[int, int]
TIME, FREQUENCY = (1, 3), (3, 1)


@dataclass
class TimeFreqConvAdapterConfig(BottleneckFields):
    """Configuration of bottlenecks of two convolutions over the grid of tokens.

    `Block(h) + f(h U_down) U_up`, with U_down and U_up convolutions of one kernel over (frequency, time) and h what the
    block reads. On an AST the grid is that of the patches, on a vision transformer (rows, columns), on waveform models
    one row of time. Special tokens are not part of the grid: only the kernel's center acts on them. Source: Yeo et al.,
    "When vision models meet parameter efficient look-aside adapters without large-scale audio pretraining", 2024, eq. 2;
    there the best are (1, 3) beside attention and (3, 1) beside the feed-forward block.

    Args:
        attention_kernel (`"auto"`, `tuple[int, int]` or `None`): kernel size along (frequency, time) of the adapter
            beside attention, odd numbers; None for no adapter there. "auto" is (1, 3).
        mlp_kernel (`"auto"`, `tuple[int, int]` or `None`): the same beside the feed-forward block. "auto" is (3, 1), and
            (1, 3) on backbones without a frequency axis.
        use_bias (`bool`): give the convolutions biases.
        adapter_input (`str`): "normalized" for the block's input, or "residual" for that input before its norm.
        bottleneck_dim, reduction_factor, activation, scaling, dropout: see `BottleneckFields`.

    Raises:
        ValueError: when made with a value that breaks a rule; on a model without a frequency axis, for a kernel that
            extends along it.

    Examples:
        >>> model = ASTForAudioClassification(ASTConfig(hidden_size=12, num_hidden_layers=2))
        >>> config = peft_audio.TimeFreqConvAdapterConfig(bottleneck_dim=3, mlp_kernel=(3, 3), modules_to_save=[])
        >>> model = get_peft_model(model, config)
        >>> trainable, total = model.get_nb_trainable_parameters()
        >>> trainable == 2 * (2 * 12 * 3 * 1 * 3 + 2 * 12 * 3 * 3 * 3)  # 2 layers, each 2 kernels 1 x 3 and 2 of 3 x 3
        True
    """

    bottleneck_dim: int = 36
    activation: str = "gelu"
    attention_kernel: Optional[Union[str, Kernel]] = field(
        default="auto", metadata={"help": "Kernel size (frequency, time) beside attention, 'auto' or None."}
    )
    mlp_kernel: Optional[Union[str, Kernel]] = field(
        default="auto",
        metadata={"help": "Kernel size (frequency, time) beside the feed-forward block, 'auto' or None."},
    )
    use_bias: bool = field(default=False, metadata={"help": "Give the convolutions biases."})
    adapter_input: str = field(
        default="normalized", metadata={"help": "'normalized' (the block's input) or 'residual' (before its norm)."}
    )

    method_name: ClassVar[str] = "time_freq_conv_adapter"
    summary: ClassVar[str] = "adapters that convolve over time and frequency"
    citations: ClassVar[tuple[str, ...]] = (LOAA,)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("attention_kernel", "mlp_kernel"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, tuple(getattr(self, name)))  # what JSON gives back
            _check_kernel(name, getattr(self, name))
        some = self.attention_kernel is not None or self.mlp_kernel is not None
        require(some, "mlp_kernel", "a kernel where `attention_kernel` is None", self.mlp_kernel)
        require_boolean("use_bias", self.use_bias)
        require_choice("adapter_input", self.adapter_input, ADAPTER_INPUTS)

    def kernels(self, backbone: Backbone) -> dict[str, Optional[Kernel]]:
        """Return the kernels of the "attention" and the "mlp" adapter on this backbone.

        Raises:
            ValueError: if a kernel extends along the frequency axis and the backbone has none.
        """
        has_frequency = backbone.patch_projection is not None
        automatic = {"attention": TIME, "mlp": FREQUENCY if has_frequency else TIME}
        chosen: dict[str, Optional[Kernel]] = {}
        for block, kernel in (("attention", self.attention_kernel), ("mlp", self.mlp_kernel)):
            chosen[block] = size = automatic[block] if isinstance(kernel, str) else kernel
            fits = size is None or size[0] == 1 or has_frequency
            rule = f"(1, time) on {backbone.model_type}, whose tokens are frames of time without a frequency axis"
            require(fits, f"{block}_kernel", rule, kernel)
        return chosen


def _check_kernel(name: str, kernel: Any) -> None:
    is_pair = isinstance(kernel, tuple) and len(kernel) == 2
    is_odd = is_pair and all(is_integer(size) and size > 0 and size % 2 == 1 for size in kernel)
    is_auto = isinstance(kernel, str) and kernel == "auto"
    rule = "'auto', None or a pair of odd positive integers (frequency, time)"
    require(kernel is None or is_auto or is_odd, name, rule, kernel)


class TimeFreqConvAdapterModel(EncoderTuner[TimeFreqConvAdapterConfig]):
    """Puts convolutional adapters on a backbone; see `TimeFreqConvAdapterConfig`."""

    prefix = "time_freq_conv_adapter_"

    def build_parts(
        self, config: TimeFreqConvAdapterConfig, backbone: Backbone, modules: LayerModules
    ) -> AdapterParts:
        """Return the adapters for one layer; see `EncoderTuner.build_parts`."""
        parts, wiring = super().build_parts(config, backbone, modules), Wiring(config.adapter_input)
        for block, kernel in config.kernels(backbone).items():
            if kernel is not None:
                parts = with_adapter(parts, block, _adapter(config, backbone, kernel), wiring)
        return parts


def _adapter(config: TimeFreqConvAdapterConfig, backbone: Backbone, kernel: Kernel) -> Bottleneck:
    frequency, time = kernel
    return Bottleneck(
        backbone.hidden_size,
        config.width(backbone.hidden_size),
        config.make_activation(),
        kernel=(time, frequency) if backbone.spec.rows_are_time else kernel,
        scaling=config.scaling,
        dropout=config.dropout,
        bias=config.use_bias,
        init_weights=config.init_weights,
    )


register_method(TimeFreqConvAdapterConfig, TimeFreqConvAdapterModel)
