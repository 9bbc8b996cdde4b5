"""A method and a backbone of somebody who uses the package: registered by public names only.

As a pytest plugin (`-p toys`) it enters them in the tests' tables, so that the parametrized suite runs over them.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from peft_audio import EncoderSpec, register_backbone
from peft_audio.methods import AdapterParts, EncoderAdapterConfig, EncoderTuner, Wiring, register_method
from peft_audio.modules import AdapterModule, in_dtype_of


# ---- a method: one file ----------------------------------------------------------------------------------------------


class GlobalMean(AdapterModule):
    """`(mean over all tokens of the clip) * gate`: it mixes tokens, and says nothing of it."""

    def __init__(self, hidden_size, start):
        super().__init__()
        self.gate = nn.Parameter(torch.full((hidden_size,), start))

    def forward(self, hidden_states, layout=None):
        tokens = in_dtype_of(self.gate, hidden_states)
        count = tokens.shape[1] if layout.mask is None else layout.mask.sum(1, keepdim=True).unsqueeze(-1)
        mean = layout.hide_padding(tokens).sum(1, keepdim=True) / count
        return in_dtype_of(hidden_states, (mean * self.gate).expand_as(tokens))


@dataclass
class GlobalMeanConfig(EncoderAdapterConfig):
    method_name: ClassVar[str] = "global_mean"


class GlobalMeanModel(EncoderTuner[GlobalMeanConfig]):
    prefix = "global_mean_"

    def build_parts(self, config, backbone, modules):
        adapter = GlobalMean(backbone.hidden_size, 0.0 if config.init_weights else 1.0)
        return AdapterParts(mlp_adapter=adapter, mlp_wiring=Wiring("normalized"))


register_method(GlobalMeanConfig, GlobalMeanModel)


# ---- a backbone: one row ---------------------------------------------------------------------------------------------


class ToyConfig(PreTrainedConfig):
    model_type = "toy"

    def __init__(self, hidden_size=32, num_layers=3, frame=20, time_first=False, **kwargs):
        self.hidden_size, self.num_layers, self.frame, self.time_first = hidden_size, num_layers, frame, time_first
        super().__init__(**kwargs)


class ToyLayer(GradientCheckpointingLayer):
    """A pre-norm layer on torch's own attention, called as fairseq calls its own."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = nn.MultiheadAttention(width, 4, batch_first=not config.time_first)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x, padding=None):
        h = self.norm1(x)
        x = x + self.self_attn(query=h, key=h, value=h, key_padding_mask=padding, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ToyPreTrainedModel(PreTrainedModel):
    config_class = ToyConfig
    base_model_prefix = "toy"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True


class ToyModel(ToyPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.project = nn.Linear(config.frame, config.hidden_size)
        self.layers = nn.ModuleList(ToyLayer(config) for _ in range(config.num_layers))
        self.post_init()

    def forward(self, input_values, attention_mask=None, output_hidden_states=False):
        padding = (
            None if attention_mask is None else attention_mask[:, self.config.frame - 1 :: self.config.frame] == 0
        )
        x = self.project(input_values.unfold(1, self.config.frame, self.config.frame))
        x = x.transpose(0, 1) if self.config.time_first else x
        states = [x]
        for layer in self.layers:
            x = layer(x, padding)
            states.append(x)
        states = [state.transpose(0, 1) if self.config.time_first else state for state in states]
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=states if output_hidden_states else None)


class ToyForAudioClassification(ToyPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.toy = ToyModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_values, attention_mask=None, labels=None, output_hidden_states=False):
        output = self.toy(input_values, attention_mask, output_hidden_states)
        states = output.last_hidden_state
        kept = (
            torch.ones(states.shape[:2])
            if attention_mask is None
            else attention_mask[:, self.config.frame - 1 :: self.config.frame]
        )
        kept = kept.unsqueeze(-1).to(states.dtype)
        logits = self.classifier((states * kept).sum(1) / kept.sum(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)


ROW = {
    "layers": "layers",
    "attention": "self_attn",
    "attention_norm": "norm1",
    "feed_forward_norm": "norm2",
    "feed_forward": "mlp",
    "input": "project",
    "padding_mask": "key_padding_mask",
    "hides_padding": True,
}


def register():
    register_backbone("toy", EncoderSpec(**ROW))
    register_backbone("toy-time-first", EncoderSpec(**ROW, batch_first=False))


def make_toy(time_first=False, bare=False, seed=0, attn_implementation=None, **options):
    torch.manual_seed(seed)
    config = ToyConfig(num_labels=5, time_first=time_first, **options)
    config.model_type = "toy-time-first" if time_first else "toy"
    model = (ToyModel if bare else ToyForAudioClassification)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return model


def pytest_configure(config):
    """Enter method and backbone in the tests' tables: one line each."""
    import tiny

    register()
    tiny.METHODS["global_mean"] = GlobalMeanConfig
    tiny.BACKBONES["toy"] = make_toy
