"""Bottleneck and Conformer adapters at every site and placement (Pfeiffer, Houlsby; parallel, sequential)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Optional, Union

import torch
from torch import nn

from ..backbones.spec import Backbone, LayerModules
from ..modules import Bottleneck, ConformerBlock
from ..tuner.adapter_parts import AdapterParts, Wiring
from ..tuner.model import EncoderTuner
from ..upstream.registration import register_method
from ..utils.validation import require, require_boolean, require_choice, require_size
from .bottleneck_fields import BottleneckFields, with_adapter
from .citations import PETL_AST


BLOCKS = ("bottleneck", "conformer")
SITES = ("attention", "mlp")
PLACEMENTS = ("parallel", "sequential")
ACTIVATION, CONV_KERNEL = "gelu", 8


@dataclass
class BottleneckAdapterConfig(BottleneckFields):
    """Configuration of adapters beside or after the blocks of an encoder layer.

    With h the input of a block, z its output and A the adapter: z + A(h) in parallel (z + h + A(h) with residual), and
    z + A(z) in sequence (A(z) without residual). Source: Cappellazzo et al., "Parameter-efficient transfer learning of
    audio spectrogram transformers", 2023; sites after Pfeiffer et al. 2021 ("mlp") and Houlsby et al. 2019 (both).

    Args:
        block (`str`): "bottleneck", or "conformer": the Conformer's convolution module over the sequence of tokens.
        sites (`tuple[str]`): "mlp", "attention" or both.
        placement (`str`): "parallel" or "sequential".
        residual (`bool`, *optional*): as above; None for what the paper advises, off in parallel, on in sequence.
        conv_kernel (`int`): kernel size of the Conformer's depthwise convolution.
        train_layer_norms (`bool`): train the layer norms before the adapted blocks as well. Post-norm layers have
            none before attention.
        bottleneck_dim, reduction_factor, activation, scaling, dropout: see `BottleneckFields`. The Conformer has an
            activation of its own (SiLU).

    Raises:
        ValueError: when made with a value that breaks a rule; for `train_layer_norms` on a model that has no such norm.

    Examples:
        >>> model = ASTForAudioClassification(ASTConfig(hidden_size=12, num_hidden_layers=2))
        >>> houlsby = peft_audio.BottleneckAdapterConfig(
        ...     bottleneck_dim=3, sites=("attention", "mlp"), placement="sequential", modules_to_save=[]
        ... )
        >>> model = get_peft_model(model, houlsby)
        >>> trainable, total = model.get_nb_trainable_parameters()
        >>> trainable == 2 * 2 * (12 * 3 + 3 + 3 * 12 + 12)  # weights and biases of the projections at both sites
        True
    """

    activation: str = ACTIVATION
    block: str = field(default="bottleneck", metadata={"help": "'bottleneck' or 'conformer'."})
    sites: Union[tuple[str, ...], list[str]] = field(
        default=("mlp",), metadata={"help": "'mlp' (Pfeiffer), 'attention', or both (Houlsby)."}
    )
    placement: str = field(default="parallel", metadata={"help": "'parallel' or 'sequential'."})
    residual: Optional[bool] = field(
        default=None, metadata={"help": "None: off in parallel, on in sequence, as the paper advises."}
    )
    conv_kernel: int = field(
        default=CONV_KERNEL, metadata={"help": "Kernel size of the Conformer's depthwise convolution."}
    )
    train_layer_norms: bool = field(
        default=False, metadata={"help": "Train the layer norms before the adapted blocks as well."}
    )

    method_name: ClassVar[str] = "bottleneck_adapter"
    summary: ClassVar[str] = "adapters at the attention or feed-forward blocks"
    citations: ClassVar[tuple[str, ...]] = (PETL_AST,)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("block", self.block, BLOCKS)
        are_names = isinstance(self.sites, (tuple, list)) and all(isinstance(site, str) for site in self.sites)
        known = are_names and len(set(self.sites)) == len(self.sites) > 0 and set(self.sites) <= set(SITES)
        require(known, "sites", "a tuple of 'mlp', 'attention' or both", self.sites)
        self.sites = tuple(self.sites)  # JSON gives back a list
        require_choice("placement", self.placement, PLACEMENTS)
        if self.residual is not None:
            require_boolean("residual", self.residual)
        require_size("conv_kernel", self.conv_kernel)
        require_boolean("train_layer_norms", self.train_layer_norms)
        if self.block == "conformer":
            rule = f"left at {ACTIVATION!r} with block='conformer', which has an activation of its own (SiLU)"
            require(self.activation == ACTIVATION, "activation", rule, self.activation)
        else:
            rule = f"left at {CONV_KERNEL} with block='bottleneck', which has no convolution"
            require(self.conv_kernel == CONV_KERNEL, "conv_kernel", rule, self.conv_kernel)

    def wiring(self) -> Wiring:
        """Return how the adapters are connected to their blocks."""
        parallel = self.placement == "parallel"
        residual = not parallel if self.residual is None else self.residual
        return Wiring("normalized", shortcut=residual) if parallel else Wiring("output", replace=not residual)


class BottleneckAdapterModel(EncoderTuner[BottleneckAdapterConfig]):
    """Puts bottleneck or Conformer adapters on a backbone; see `BottleneckAdapterConfig`."""

    prefix = "bottleneck_adapter_"

    def build_parts(self, config: BottleneckAdapterConfig, backbone: Backbone, modules: LayerModules) -> AdapterParts:
        """Return the adapters and norms for one layer; see `EncoderTuner.build_parts`."""
        parts = super().build_parts(config, backbone, modules)
        for site in config.sites:
            parts = with_adapter(parts, site, _adapter(config, backbone), config.wiring())
        if config.train_layer_norms:
            norms = {"attention": modules.attention_norm, "mlp": modules.feed_forward_norm}
            own = {site: _own_norm(norms[site]) for site in config.sites}
            parts = parts._replace(attention_norm=own.get("attention"), mlp_norm=own.get("mlp"))
            some = parts.attention_norm is not None or parts.mlp_norm is not None
            rule = f"False for sites {config.sites} on {backbone.model_type}, which has no norm in front of attention"
            require(some, "train_layer_norms", rule, config.train_layer_norms)
        return parts


def _adapter(config: BottleneckAdapterConfig, backbone: Backbone) -> nn.Module:
    sizes = (backbone.hidden_size, config.width(backbone.hidden_size))
    scaling, dropout, init_weights = config.scaling, config.dropout, config.init_weights
    if config.block == "conformer":
        return ConformerBlock(*sizes, config.conv_kernel, scaling, dropout, init_weights)
    activation = config.make_activation()
    return Bottleneck(*sizes, activation, scaling=scaling, dropout=dropout, init_weights=init_weights)


def _own_norm(norm: Optional[nn.Module]) -> Optional[nn.LayerNorm]:
    """Return a layer norm that starts with the weights of the frozen one; None for None."""
    if norm is None:
        return None
    is_layer_norm = isinstance(norm, nn.LayerNorm) and norm.elementwise_affine
    require(is_layer_norm, "train_layer_norms", "False for norms that are no layer norm with weights", norm)
    assert isinstance(norm, nn.LayerNorm)
    own = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, bias=norm.bias is not None)
    with torch.no_grad():
        for parameter, frozen in zip(own.parameters(), norm.parameters()):
            if not frozen.is_meta:  # of a model without weights, which has shapes alone
                parameter.copy_(frozen)
    return own


register_method(BottleneckAdapterConfig, BottleneckAdapterModel)
