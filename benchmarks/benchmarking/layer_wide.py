"""The plain way to put prompts into an encoder, which the package's own is measured against."""

import torch
from peft import get_peft_model
from torch import nn
from transformers import PreTrainedModel

from peft_audio import ParallelMLPAdapterConfig
from peft_audio.backbones.table import resolve


class LayerWidePrompts(nn.Module):
    """An encoder layer that runs on prompts and tokens alike, and gives what it makes of the tokens."""

    def __init__(self, layer: nn.Module, num_prompts: int, hidden_size: int):
        super().__init__()
        self.layer = layer
        self.prompts = nn.Parameter(0.02 * torch.randn(1, num_prompts, hidden_size))

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        prompts = self.prompts.expand(len(hidden_states), -1, -1)
        return self.layer(torch.cat([prompts, hidden_states], dim=1), *args, **kwargs)[:, prompts.shape[1] :]


def layer_wide(
    model: PreTrainedModel, num_prompts: int, bottleneck_dim: int, freeze_feature_encoder: bool = False
) -> nn.Module:
    """IPET with prompts in front of whole layers: prompts of its equation 1, and this package's parallel adapters.

    A waveform model's feature encoder is left as one is whose parameters ask for no gradient: it runs its backward pass
    all the same, unless `freeze_feature_encoder`, as with this package's adapters.
    """
    config = ParallelMLPAdapterConfig(
        bottleneck_dim=bottleneck_dim, adapter_input="residual", scaling=0.1, dropout=0.1, activation="relu"
    )
    adapted = get_peft_model(model, config)
    backbone = resolve(model)
    for name in backbone.layer_names:
        parent, _, child = name.rpartition(".")
        layers = model.get_submodule(parent)
        layers[int(child)] = LayerWidePrompts(layers[int(child)], num_prompts, backbone.hidden_size)
    # A hook that might read hidden states: adapters then leave out none of them, which are not where they expect them.
    backbone.encoder.register_forward_hook(lambda *_: None)
    if backbone.feature_encoder is not None and not freeze_feature_encoder:
        backbone.feature_encoder._requires_grad = True
    return adapted
