"""Tiny models laid out like MERT and BEATs, whose layers are like HuBERT's and WavLM's; see lookalikes.py."""

import math

import torch
from lookalikes import DEPTH, HEADS, WIDTH, drawn
from torch import nn
from transformers import HubertConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.hubert import modeling_hubert as hubert


# ---- MERT ------------------------------------------------------------------------------------------------------------


class MERTConfig(HubertConfig):
    model_type = "mert_model"

    def __init__(self, feature_extractor_cqt=False, deepnorm=False, attention_relax=-1.0, **kwargs):
        super().__init__(**kwargs)
        self.feature_extractor_cqt, self.deepnorm = feature_extractor_cqt, deepnorm
        self.attention_relax = attention_relax


class RelaxedAttention(nn.Module):
    """MERT's own attention: no function of transformers, and three things returned."""

    def __init__(self):
        super().__init__()
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(
        self,
        hidden_states,
        key_value_states=None,
        past_key_value=None,
        attention_mask=None,
        layer_head_mask=None,
        output_attentions=False,
    ):
        q, k, v = (
            p(hidden_states).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None, past_key_value


class DeepNormLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention, self.dropout = RelaxedAttention(), nn.Dropout(0.0)
        self.layer_norm, self.final_layer_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.feed_forward = hubert.HubertFeedForward(config)
        self.residual_alpha = math.pow(2.0 * config.num_hidden_layers, 0.25)

    def forward(self, hidden_states, attention_mask=None, output_attentions=False):
        mixed, weights, _ = self.attention(
            hidden_states, attention_mask=attention_mask, output_attentions=output_attentions
        )
        x = self.layer_norm(hidden_states * self.residual_alpha + self.dropout(mixed))
        x = self.final_layer_norm(x * self.residual_alpha + self.feed_forward(x))
        return (x, weights) if output_attentions else (x,)


class DeepNormEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.pos_conv_embed, self.layer_norm = hubert.HubertPositionalConvEmbedding(config), nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(DeepNormLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        mask = None
        if attention_mask is not None:
            hidden_states = hidden_states.masked_fill(~attention_mask[..., None], 0.0)
            mask = attention_mask[:, None, None].expand(-1, 1, attention_mask.shape[1], -1)
        x = self.layer_norm(hidden_states + self.pos_conv_embed(hidden_states))
        for layer in self.layers:
            x = layer(x, attention_mask=mask)[0]
        return BaseModelOutput(last_hidden_state=x)


class FeatureProjection(nn.Module):
    def __init__(self, config):
        super().__init__()
        bins = 4 if config.feature_extractor_cqt else 0
        self.layer_norm, self.projection = (
            nn.LayerNorm(config.conv_dim[-1] + bins),
            nn.Linear(config.conv_dim[-1] + bins, WIDTH),
        )

    def forward(self, hidden_states):
        return self.projection(self.layer_norm(hidden_states))


class MERTModel(hubert.HubertModel):
    config_class, base_model_prefix = MERTConfig, "mert_model"

    def __init__(self, config):
        super().__init__(config)
        self.feature_projection = FeatureProjection(config)
        if config.deepnorm:
            self.encoder = DeepNormEncoder(config)
        self.post_init()

    def forward(self, input_values, attention_mask=None, output_hidden_states=None, return_dict=None):
        features = self.feature_extractor(input_values).transpose(1, 2)
        if self.config.feature_extractor_cqt:  # something else that is worked out from the waveform
            pieces = input_values[:, : 20 * features.shape[1]].unflatten(1, (features.shape[1], -1))
            features = torch.cat([features, pieces[..., :4].abs()], dim=-1)
        if attention_mask is not None:
            attention_mask = self._get_feature_vector_attention_mask(features.shape[1], attention_mask)
        output = self.encoder(self.feature_projection(features), attention_mask=attention_mask)
        return BaseModelOutput(last_hidden_state=output.last_hidden_state)


def make_mert(**options):
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 64}
    front = {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
    rest = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "feat_extract_norm": "layer"}
    off = dict.fromkeys(
        ("hidden_dropout", "attention_dropout", "activation_dropout", "layerdrop", "mask_time_prob"), 0.0
    )
    return drawn(MERTModel, MERTConfig(**{**sizes, **front, **rest, **off, **options}))


# ---- BEATs -----------------------------------------------------------------------------------------------------------

CFG = {"encoder_embed_dim": WIDTH, "layer_norm_first": False, "relative_position_embedding": True}
BINS, PATCH, HOP = 16, 4, 20


class MultiheadAttention(nn.Module):
    """Takes `(tokens, batch, d)`; adds a bias for relative positions that each query weights, and returns the bias."""

    def __init__(self, has_bias):
        super().__init__()
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.has_relative_attention_bias = has_bias
        if has_bias:
            self.relative_attention_bias = nn.Embedding(32, HEADS)
        self.grep_linear = nn.Linear(WIDTH // HEADS, 1)

    def compute_bias(self, query_length, key_length):
        distance = torch.arange(key_length)[None] - torch.arange(query_length)[:, None]
        return self.relative_attention_bias(distance.clamp(-16, 15) + 16).permute(2, 0, 1)

    def forward(self, query, key, value, key_padding_mask=None, need_weights=True, attn_mask=None, position_bias=None):
        length, batch, _ = query.shape
        if self.has_relative_attention_bias and position_bias is None:
            position_bias = self.compute_bias(length, length).repeat(batch, 1, 1)
        q, k, v = (
            projection(query).unflatten(-1, (HEADS, -1)).permute(1, 2, 0, 3)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        if position_bias is not None:
            scores = scores + self.grep_linear(q).sigmoid() * position_bias.unflatten(0, (batch, HEADS))
        if key_padding_mask is not None:
            scores = scores.masked_fill(key_padding_mask[:, None, None], -math.inf)
        mixed = (scores.softmax(-1) @ v).permute(2, 0, 1, 3).flatten(2)
        return self.out_proj(mixed), None, position_bias


class SentenceEncoderLayer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.self_attn = MultiheadAttention(cfg["relative_position_embedding"])
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.fc1, self.fc2, self.dropout3 = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH), nn.Dropout(0.0)
        self.layer_norm_first, self.deep_norm_alpha = cfg["layer_norm_first"], math.pow(2 * DEPTH, 1 / 4)

    def feed_forward(self, x):
        return self.dropout3(self.fc2(nn.functional.gelu(self.fc1(x))))

    def forward(self, x, self_attn_mask=None, self_attn_padding_mask=None, need_weights=False, pos_bias=None):
        h = self.self_attn_layer_norm(x) if self.layer_norm_first else x
        options = {"key_padding_mask": self_attn_padding_mask, "need_weights": False, "attn_mask": self_attn_mask}
        mixed, weights, pos_bias = self.self_attn(query=h, key=h, value=h, position_bias=pos_bias, **options)
        if self.layer_norm_first:
            x = x + mixed
            return x + self.feed_forward(self.final_layer_norm(x)), weights, pos_bias
        x = self.self_attn_layer_norm(x * self.deep_norm_alpha + mixed)
        return self.final_layer_norm(x * self.deep_norm_alpha + self.feed_forward(x)), weights, pos_bias


class TransformerEncoder(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.layers = nn.ModuleList(SentenceEncoderLayer(cfg) for _ in range(DEPTH))
        for layer in self.layers[1:]:
            if cfg["relative_position_embedding"]:
                layer.self_attn.relative_attention_bias = self.layers[0].self_attn.relative_attention_bias

    def forward(self, x, padding_mask=None, layer=None):
        x, bias = x.transpose(0, 1), None
        for module in self.layers:
            x, _, bias = module(x, self_attn_padding_mask=padding_mask, need_weights=False, pos_bias=bias)
        return x.transpose(0, 1), []


class BEATs(nn.Module):
    """Has no forward. A frame is `HOP` samples, a patch `PATCH` frames by `PATCH` bins."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.register_buffer("filters", torch.linspace(-1, 1, HOP * BINS).sin().view(HOP, BINS))
        self.patch_embedding = nn.Conv2d(1, 24, PATCH, stride=PATCH, bias=False)
        self.layer_norm, self.post_extract_proj = nn.LayerNorm(24), nn.Linear(24, WIDTH)
        self.encoder = TransformerEncoder(cfg)

    def extract_features(self, source, padding_mask=None):
        frames = source.unfold(1, HOP, HOP) @ self.filters
        patches = self.patch_embedding(frames.unsqueeze(1)).flatten(2).transpose(1, 2)
        if padding_mask is not None:
            padding_mask = padding_mask.view(len(source), -1, HOP * PATCH).all(-1)
            padding_mask = padding_mask.repeat_interleave(BINS // PATCH, dim=1)
        x, _ = self.encoder(self.post_extract_proj(self.layer_norm(patches)), padding_mask=padding_mask)
        return x, padding_mask
