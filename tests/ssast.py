"""Made-up checkpoints in SSAST's layout, and SSAST's forward in torch operations."""

import functools

import torch
from tiny import NUM_LABELS, randomize
from torch.nn import functional


WIDTH, HEADS, DEPTH = 32, 4, 2
SMALL = {"max_length": 64, "num_mel_bins": 32, "num_labels": NUM_LABELS, "num_attention_heads": HEADS}


def make_ssast(width=WIDTH, depth=DEPTH, patch=(16, 16), num_patches=512, prefix="module."):
    """A made-up state dict in the layout of the published SSAST checkpoints."""
    generator = torch.Generator().manual_seed(3)
    normal = functools.partial(torch.randn, generator=generator)
    shapes = {"cls_token": (1, 1, width), "dist_token": (1, 1, width), "pos_embed": (1, 2 + num_patches, width)}
    shapes |= {"patch_embed.proj.weight": (width, 1, *patch), "patch_embed.proj.bias": (width,)}
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    layers |= {"mlp.fc1": (2 * width, width), "mlp.fc2": (width, 2 * width)}
    for index in range(depth):
        for name, shape in layers.items():
            shapes |= {f"blocks.{index}.{name}.weight": shape, f"blocks.{index}.{name}.bias": shape[:1]}
        for name in (f"blocks.{index}.norm1", f"blocks.{index}.norm2"):
            shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,), "head.weight": (7, width), "head.bias": (7,)}
    shapes |= {"head_dist.weight": (7, width), "head_dist.bias": (7,)}
    tensors = {f"{prefix}v.{name}": 0.2 * normal(shape) for name, shape in shapes.items()}
    pretraining = {"mask_embed": (1, 1, width), "cpredlayer.0.weight": (width, width), "gpredlayer.2.bias": (256,)}
    pretraining |= {"mlp_head.0.weight": (width,)}
    tensors |= {f"{prefix}{name}": normal(shape) for name, shape in pretraining.items()}
    numbers = {"p_input_fdim": 128, "p_input_tdim": 2 * num_patches, "p_f_dim": 8, "p_t_dim": num_patches // 8}
    return tensors | {f"{prefix}{name}": torch.tensor(number) for name, number in numbers.items()}


def ssast_forward(tensors, head, spectrogram, positions=None, stride=(16, 16)):
    """SSAST's fine-tuning forward with the mean of the patch tokens, from its description."""
    weights = {name.removeprefix("module.v."): tensor for name, tensor in tensors.items()}

    def linear(name, inputs):
        return inputs @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, inputs):
        return functional.layer_norm(inputs, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def split_heads(inputs):
        return inputs.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    image = spectrogram.transpose(1, 2).unsqueeze(1)
    patches = functional.conv2d(
        image, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=stride
    )
    patches = patches.flatten(2).transpose(1, 2)
    special = torch.cat([weights["cls_token"], weights["dist_token"]], dim=1).expand(len(patches), -1, -1)
    tokens = torch.cat([special, patches], dim=1) + (weights["pos_embed"] if positions is None else positions)
    for index in range(DEPTH):
        block = f"blocks.{index}"
        query, key, value = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", tokens)).split(WIDTH, dim=-1)
        query, key, value = split_heads(query), split_heads(key), split_heads(value)
        attention = (query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5).softmax(dim=-1)
        tokens = tokens + linear(f"{block}.attn.proj", (attention @ value).transpose(1, 2).flatten(2))
        hidden = functional.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", tokens)))
        tokens = tokens + linear(f"{block}.mlp.fc2", hidden)
    pooled = norm("norm", tokens)[:, 2:].mean(dim=1)
    pooled = functional.layer_norm(pooled, (WIDTH,), head.layernorm.weight, head.layernorm.bias, 1e-5)
    return pooled @ head.dense.weight.T + head.dense.bias


def randomize_head(ast):
    randomize(ast.classifier)
    return ast
