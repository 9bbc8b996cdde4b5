"""A side network: a narrow network beside the frozen encoder (ladder side-tuning, LST)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Optional

from ..backbones.spec import Backbone, LayerModules
from ..backbones.table import locate
from ..config import EncoderAdapterConfig
from ..modules import DepthwiseConv, NarrowAttention, SideBlock, SideOutput, TokenMixer
from ..tuner.adapter_parts import AdapterParts
from ..tuner.model import EncoderTuner
from ..upstream.registration import register_method
from ..utils.validation import require, require_choice, require_positive_integer, require_probability
from .bottleneck_fields import make_activation, require_activation, require_factor, width_of
from .citations import LST


BLOCKS = ("mlp", "conv", "attention")
GATES = ("scalar", "vector")
GRID_KERNEL, TIME_KERNEL = (3, 3), (1, 7)  # (frequency, time), of the convolutions


@dataclass
class SideNetworkConfig(EncoderAdapterConfig):
    """Configuration of a side network, which learns beside the encoder and not within: no backward pass runs through it.

    With h the output of a chosen encoder layer of width d, and s the state of width w = d / `reduction_factor` that the block
    of the layer before has left, zero at first:

    `z = g * (LN(h) W_down + b) + (1 - g) * s`, `g = sigmoid(alpha / 0.1)`, and `s' = z + W_2 act(W_1 LN(z))` with an inner
    width of 2 w. In between, "conv" and "attention" mix the tokens: `z + mix(LN(z))`. After the last encoder layer
    `LN(s) W_up + b` is added to what that layer gives, so a norm behind the layers acts on the sum. W_up starts at zero.
    Hidden states of layers before are the base model's. Source: Sung et al., "LST: ladder side-tuning for parameter and
    memory efficient transfer learning", 2022, section 3.2, with alpha = 0 at the start as there.

    For n layers, an adapter has `n (d w + w + G + M + 4 w^2 + 5 w) + 2 w + w d + d` parameters. G is 1, or w with a gate for
    each channel. M is 0, `2 w + 7 w` for convolutions over time, `2 w + 9 w` over the grid of patches, `2 w + 4 w^2 + w` for
    attention.

    Args:
        reduction_factor (`float`): hidden size divided by the width of the side network.
        block (`str`): "mlp" works on each token alone, "conv" has a depthwise convolution over time or over the grid of the
            patches (kernels of 7 and of 3 x 3), "attention" lets the narrow tokens attend to each other.
        gate (`str`): "scalar" for one gate a layer, "vector" for one a layer and channel.
        every_nth_layer (`int`): of the chosen layers, read every n-th, counted from the last one.
        activation (`str`): a name of transformers' `ACT2FN`.
        dropout (`float`): probability of dropping an element after the activation, in training.
        layers_to_transform (`int` or `list[int]`, *optional*): encoder layers whose outputs the side network reads. What it
            adds is added after the last encoder layer in any case.

    Raises:
        ValueError: when made with a value that breaks a rule; for a `reduction_factor` above the hidden size.

    Examples:
        >>> model = ASTForAudioClassification(ASTConfig(hidden_size=12, num_hidden_layers=2))
        >>> model = get_peft_model(model, peft_audio.SideNetworkConfig(reduction_factor=4, modules_to_save=[]))
        >>> trainable, total = model.get_nb_trainable_parameters()
        >>> trainable == 2 * (12 * 3 + 3 + 1 + 4 * 3**2 + 5 * 3) + 2 * 3 + 3 * 12 + 12
        True
    """

    reduction_factor: float = field(default=8, metadata={"help": "Hidden size divided by the side network's width."})
    block: str = field(default="mlp", metadata={"help": "'mlp', 'conv' or 'attention'."})
    gate: str = field(default="scalar", metadata={"help": "'scalar' or 'vector' (one a channel)."})
    every_nth_layer: int = field(
        default=1, metadata={"help": "Of the chosen layers, read every n-th, counted from the last."}
    )
    activation: str = field(default="gelu", metadata={"help": "Name of an activation in transformers' ACT2FN."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout probability after the activation."})

    method_name: ClassVar[str] = "side_network"
    summary: ClassVar[str] = "a side network beside the encoder"
    citations: ClassVar[tuple[str, ...]] = (LST,)
    filled_in: ClassVar[tuple[str, ...]] = (*EncoderAdapterConfig.filled_in, "every_nth_layer")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_factor(self.reduction_factor, "a number of at least 1")
        require_choice("block", self.block, BLOCKS)
        require_choice("gate", self.gate, GATES)
        require_positive_integer("every_nth_layer", self.every_nth_layer)
        require_activation(self.activation)
        require_probability("dropout", self.dropout)
        require(
            self.stack == "encoder", "stack", "'encoder' for a side network, which reads encoder layers", self.stack
        )

    def choose_layers(self, layers: list[int], stack: str = "encoder") -> None:
        """Read the outputs of the encoder layers with these indices, and no others."""
        super().choose_layers(layers, stack)
        self.every_nth_layer = 1

    def selected_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the indices of the layers whose outputs are read, in ascending order.

        Args:
            num_layers: number of layers of the encoder.

        Raises:
            ValueError: if an index is out of range, or two name the same layer.
        """
        return super().selected_layers(num_layers)[:: -self.every_nth_layer][::-1]


class SideNetworkModel(EncoderTuner[SideNetworkConfig]):
    """Puts side networks beside a backbone's encoder; see `SideNetworkConfig`."""

    prefix = "side_network_"

    def target_names(self, config: SideNetworkConfig, backbone: Backbone) -> list[str]:
        """Return the paths of the layers that are read, and of the last one, behind which the addition is."""
        names = super().target_names(config, backbone)
        return list(dict.fromkeys([*names, backbone.layer_names[-1]])) if names else []

    def build_parts(self, config: SideNetworkConfig, backbone: Backbone, modules: LayerModules) -> AdapterParts:
        """Return the block for a layer that is read, and the way back in the last one; see `EncoderTuner.build_parts`."""
        width = width_of(backbone.hidden_size, config.reduction_factor)
        parts, index = super().build_parts(config, backbone, modules), self._index(backbone, modules)
        if index in config.selected_layers(len(backbone.layer_names)):
            parts = parts._replace(side=_block(config, backbone, width))
        if index == len(backbone.layer_names) - 1:
            parts = parts._replace(side_output=SideOutput(width, backbone.hidden_size, config.init_weights))
        return parts

    def _index(self, backbone: Backbone, modules: LayerModules) -> int:
        layers = (locate(self.model.get_submodule(name), backbone.spec) for name in backbone.layer_names)
        return next(index for index, layer in enumerate(layers) if layer.attention is modules.attention)


def _block(config: SideNetworkConfig, backbone: Backbone, width: int) -> SideBlock:
    return SideBlock(
        backbone.hidden_size,
        width,
        num_gates=1 if config.gate == "scalar" else width,
        activation=make_activation(config.activation),
        mixer=_mixer(config, backbone, width),
        dropout=config.dropout,
        init_weights=config.init_weights,
    )


def _mixer(config: SideNetworkConfig, backbone: Backbone, width: int) -> Optional[TokenMixer]:
    if config.block == "conv":
        return DepthwiseConv(width, TIME_KERNEL if backbone.patch_projection is None else GRID_KERNEL)
    return NarrowAttention(width) if config.block == "attention" else None


register_method(SideNetworkConfig, SideNetworkModel)
