"""The methods' equations in plain torch, written from the papers and not from the package."""

import math

import torch
from torch.nn.functional import gelu, layer_norm, relu


ACTIVATIONS = {"relu": relu, "gelu": gelu}
NAMES = {
    "ast": {
        "q": "attention.q_proj",
        "k": "attention.k_proj",
        "v": "attention.v_proj",
        "o": "attention.o_proj",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
    },
    "wav2vec2": {
        "q": "attention.q_proj",
        "k": "attention.k_proj",
        "v": "attention.v_proj",
        "o": "attention.out_proj",
        "norm1": "layer_norm",
        "norm2": "final_layer_norm",
        "fc1": "feed_forward.intermediate_dense",
        "fc2": "feed_forward.output_dense",
    },
}
NAMES["wav2vec2-stable"] = NAMES["wav2vec2"]


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def self_attention(x, weights, names, heads):
    batch, tokens, width = x.shape
    q, k, v = (
        linear(x, weights, names[part]).reshape(batch, tokens, heads, -1).permute(0, 2, 1, 3)
        for part in ("q", "k", "v")
    )
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(width / heads)
    mixed = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)
    return linear(mixed.permute(0, 2, 1, 3).reshape(batch, tokens, width), weights, names["o"])


def bottleneck(x, adapter, activation, scaling):
    hidden = ACTIVATIONS[activation](x @ adapter["down.weight"].T + adapter["down.bias"])
    return scaling * (hidden @ adapter["up.weight"].T + adapter["up.bias"])


def encoder_layer(x, weights, backbone, heads, prompt=None, mlp=None, spatial=None, config=None, eps=1e-5):
    """One adapted encoder layer: prompts stand in front of the whole layer and are cut off after it (IPET, eq. 1)."""
    names = NAMES[backbone]
    post_norm = backbone == "wav2vec2"

    def norm(values, part):
        name = names[part]
        return layer_norm(values, values.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    if prompt is not None:
        x = torch.cat([prompt.expand(x.shape[0], -1, -1), x], dim=1)
    z = self_attention(x if post_norm else norm(x, "norm1"), weights, names, heads)
    if spatial is not None:
        z = z + bottleneck(z, spatial, config.activation, config.scaling)
    residual = x + z
    normalized = norm(residual, "norm1" if post_norm else "norm2")
    y = linear(gelu(linear(normalized, weights, names["fc1"])), weights, names["fc2"])
    if mlp is not None:
        source = residual if config.adapter_input == "residual" else normalized
        y = y + bottleneck(source, mlp, config.activation, config.scaling)
    y = norm(normalized + y, "norm2") if post_norm else residual + y
    return y if prompt is None else y[:, prompt.shape[0] :]
