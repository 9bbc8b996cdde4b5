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


def bottleneck(x, adapter, activation, scaling=1.0):
    hidden = ACTIVATIONS[activation](x @ adapter["down.weight"].T + adapter["down.bias"])
    return scaling * (hidden @ adapter["up.weight"].T + adapter["up.bias"])


def convolve(x, weight, grid):
    """LoAA's convolution, position by position; tokens in front of the grid see the center tap alone."""
    rows, columns = grid
    _, _, height, width = weight.shape
    special = x.shape[1] - rows * columns
    y = torch.zeros(x.shape[0], x.shape[1], weight.shape[0])
    for token in range(special):
        y[:, token] = x[:, token] @ weight[:, :, height // 2, width // 2].T
    for row in range(rows):
        for column in range(columns):
            for i in range(height):
                for j in range(width):
                    r, c = row + i - height // 2, column + j - width // 2
                    if 0 <= r < rows and 0 <= c < columns:
                        y[:, special + row * columns + column] += (
                            x[:, special + r * columns + c] @ weight[:, :, i, j].T
                        )
    return y


def conv_bottleneck(x, adapter, grid, activation="gelu"):
    return convolve(ACTIVATIONS[activation](convolve(x, adapter["down.weight"], grid)), adapter["up.weight"], grid)


def conformer(x, adapter):
    """The Conformer's convolution module in evaluation mode, the depthwise convolution tap by tap."""
    normal = layer_norm(x, x.shape[-1:], adapter["norm.weight"], adapter["norm.bias"])
    value, gate = (normal @ adapter["down.weight"].T + adapter["down.bias"]).chunk(2, dim=-1)
    hidden = value * torch.sigmoid(gate)
    taps = adapter["depthwise.weight"][:, 0]
    kernel, length = taps.shape[1], hidden.shape[1]
    mixed = torch.zeros_like(hidden)
    for position in range(length):
        for tap in range(kernel):
            source = position + tap - (kernel - 1) // 2
            if 0 <= source < length:
                mixed[:, position] += hidden[:, source] * taps[:, tap]
    scale = adapter["batch_norm.weight"] / (adapter["batch_norm.running_var"] + 1e-5).sqrt()
    mixed = (mixed - adapter["batch_norm.running_mean"]) * scale + adapter["batch_norm.bias"]
    return (mixed * torch.sigmoid(mixed)) @ adapter["up.weight"].T + adapter["up.bias"]


def encoder_layer(x, weights, backbone, heads, prompt=None, attention=None, mlp=None, eps=1e-5):
    """One adapted encoder layer: prompts stand in front of the whole layer and are cut off after it (IPET, eq. 1).

    `attention` and `mlp` give what a block puts out with its adapter, from what it reads before and after its norm and
    what it puts out without.
    """
    names = NAMES[backbone]
    post_norm = backbone == "wav2vec2"

    def norm(values, part):
        name = names[part]
        return layer_norm(values, values.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    if prompt is not None:
        x = torch.cat([prompt.expand(x.shape[0], -1, -1), x], dim=1)
    normalized = x if post_norm else norm(x, "norm1")
    z = self_attention(normalized, weights, names, heads)
    if attention is not None:
        z = attention(x, normalized, z)
    residual = x + z
    normalized = norm(residual, "norm1" if post_norm else "norm2")
    y = linear(gelu(linear(normalized, weights, names["fc1"])), weights, names["fc2"])
    if mlp is not None:
        y = mlp(residual, normalized, y)
    y = norm(normalized + y, "norm2") if post_norm else residual + y
    return y if prompt is None else y[:, prompt.shape[0] :]
