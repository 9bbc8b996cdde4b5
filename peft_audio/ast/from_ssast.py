"""Audio Spectrogram Transformers that start from the published checkpoints of SSAST."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Optional, Union

import torch
from safetensors.torch import load_file
from transformers import ASTConfig, ASTForAudioClassification

from ..heads.mean_token_pooling import use_mean_token_pooling
from ..utils.validation import require, require_positive_integer
from .from_vit import Tensors, build_ast, input_sizes
from .resize import num_patches, patch_grid, resize_positions


SSAST_PATCH = 16
# Mel bins and frames of SSAST's pretraining, for checkpoints that do not have them.
SSAST_INPUT = (128, 1024)
# Names of a layer's modules in SSAST (those of timm's DeiT) and in AST. The three projections are one matrix in SSAST.
SSAST_LAYER = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
# Only needed for pretraining: the objectives, the mask, the sizes of the input, and all heads.
SSAST_IGNORED = (
    "mask_embed",
    "cpredlayer.",
    "gpredlayer.",
    "p_input_fdim",
    "p_input_tdim",
    "p_f_dim",
    "p_t_dim",
    "unfold",
    "mlp_head.",
    "v.head.",
    "v.head_dist.",
)


def ast_from_ssast(
    checkpoint: Union[Mapping[str, torch.Tensor], str, os.PathLike],
    num_labels: int = 527,
    max_length: int = 1024,
    num_mel_bins: int = 128,
    time_stride: int = 16,
    frequency_stride: int = 16,
    num_attention_heads: Optional[int] = None,
) -> ASTForAudioClassification:
    """Make an AST that starts from a self-supervised SSAST checkpoint (Gong et al. 2022), pretrained on patches.

    The head is new and reads the mean of the patch tokens, as in SSAST's fine-tuning (`use_mean_token_pooling`). Position
    embeddings follow the rules of `resize_ast`.

    Args:
        checkpoint: a state dict in the layout of the published checkpoints (`module.v.blocks.0.attn.qkv.weight`, ...), or
            the path of a file with one, of `torch.save` or `.safetensors`.
        num_labels: number of classes; by default as many as AudioSet has.
        max_length: number of spectrogram frames (10 ms each).
        num_mel_bins: number of mel bins.
        time_stride: frames from one patch to the next.
        frequency_stride: mel bins from one patch to the next.
        num_attention_heads: None for one per 64 dimensions, as in the published models.

    Returns:
        An `ASTForAudioClassification` in evaluation mode, of the checkpoint's dtype. Before you put adapters on it, save
        it, load it from there (an adapter names its base model's folder), and call `use_mean_token_pooling` again.

    Raises:
        TypeError: if `checkpoint` is neither a state dict nor a path.
        ValueError: if tensors are missing or unknown, the pretraining was on frames, or a number is wrong.

    Examples:
        >>> ast = peft_audio.ast_from_ssast("SSAST-Tiny-Patch-400.pth", num_labels=50, max_length=512)
        >>> ast.config.max_length, ast.config.num_labels
        (512, 50)
    """
    tensors, sizes = _read(checkpoint), (max_length, num_mel_bins, time_stride, frequency_stride)
    return _convert(tensors, sizes, num_labels, num_attention_heads)


def _convert(
    checkpoint: Mapping[str, torch.Tensor],
    sizes: tuple[int, int, int, int],
    num_labels: int,
    num_attention_heads: Optional[int],
) -> ASTForAudioClassification:
    tensors = {name.removeprefix("module."): tensor for name, tensor in checkpoint.items()}
    depth = _check_ssast(tensors)
    kernel = tensors["v.patch_embed.proj.weight"]
    width = kernel.shape[0]
    require_positive_integer("num_labels", num_labels)
    labels: dict[str, Any] = {"num_labels": num_labels}
    config = ASTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=_num_heads(num_attention_heads, width),
        intermediate_size=tensors["v.blocks.0.mlp.fc1.weight"].shape[0],
        layer_norm_eps=1e-6,
        **labels,
        **input_sizes(SSAST_PATCH, *sizes),
    )
    weights = _embeddings_from_ssast(tensors, config)
    for index in range(depth):
        weights |= _layer_from_ssast(tensors, index)
    weights |= {f"layernorm.{kind}": tensors[f"v.norm.{kind}"] for kind in ("weight", "bias")}
    ast: Any = build_ast(config, weights)
    use_mean_token_pooling(ast)
    return ast.to(kernel.dtype).eval()


def _read(checkpoint: Any) -> Mapping[str, torch.Tensor]:
    if isinstance(checkpoint, (str, os.PathLike)):
        path = os.fspath(checkpoint)
        is_safetensors = path.endswith(".safetensors")
        checkpoint = load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, Mapping) or not all(isinstance(t, torch.Tensor) for t in checkpoint.values()):
        raise TypeError(
            "`checkpoint` must be a state dict, or the path of a file with one, got "
            f"{type(checkpoint).__name__}. Take the state dict of the SSAST model."
        )
    return checkpoint


def _check_ssast(tensors: Tensors) -> int:
    """Return the number of layers, or raise ValueError if this is no SSAST checkpoint pretrained on patches."""
    layers = (name.split(".")[2] for name in tensors if name.startswith("v.blocks."))
    depth = 1 + max((int(index) for index in layers if index.isdigit()), default=0)
    needed = _ssast_names(depth)
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise ValueError(
            f"The SSAST checkpoint lacks {_listed(missing)}. Is it complete, and in the layout of the published ones?"
        )
    unknown = sorted(name for name in tensors if name not in needed and not name.startswith(SSAST_IGNORED))
    if unknown:
        raise ValueError(
            f"The SSAST checkpoint has {_listed(unknown)}, which are not part of the published layout. If the model "
            "does not need them, remove them."
        )
    shape = tuple(tensors["v.patch_embed.proj.weight"].shape)
    rule = f"of shape (d, 1, {SSAST_PATCH}, {SSAST_PATCH}): take an SSAST pretrained on patches, not on frames"
    require(shape[1:] == (1, SSAST_PATCH, SSAST_PATCH), "v.patch_embed.proj.weight", rule, shape)
    return depth


def _ssast_names(depth: int) -> dict[str, None]:
    modules = ["v.patch_embed.proj", "v.norm"]
    modules += [f"v.blocks.{index}.{name}" for index in range(depth) for name in ("attn.qkv", *SSAST_LAYER)]
    tokens = ("v.cls_token", "v.dist_token", "v.pos_embed")
    return dict.fromkeys([*tokens, *(f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))])


def _listed(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _num_heads(asked: Optional[int], width: int) -> int:
    if asked is None:
        # The checkpoint's tensors are the same for any number of heads.
        require(width % 64 == 0, "num_attention_heads", f"given for a width ({width}) that 64 does not divide", asked)
        return width // 64
    require_positive_integer("num_attention_heads", asked)
    require(width % asked == 0, "num_attention_heads", f"a divisor of the width {width}", asked)
    return asked


def _embeddings_from_ssast(tensors: Tensors, config: ASTConfig) -> Tensors:
    bins, frames = (
        int(tensors.get(name, default)) for name, default in zip(("p_input_fdim", "p_input_tdim"), SSAST_INPUT)
    )
    grid = (num_patches(bins, SSAST_PATCH, SSAST_PATCH), num_patches(frames, SSAST_PATCH, SSAST_PATCH))
    positions = tensors["v.pos_embed"]
    rule = f"of shape (1, {2 + grid[0] * grid[1]}, d) for a pretraining input of {bins} bins and {frames} frames"
    require(positions.shape[1] == 2 + grid[0] * grid[1], "v.pos_embed", rule, tuple(positions.shape))
    same_length = (
        num_patches(bins, SSAST_PATCH, config.frequency_stride),
        num_patches(frames, SSAST_PATCH, config.time_stride),
    )
    return {
        "embeddings.cls_token": tensors["v.cls_token"],
        "embeddings.distillation_token": tensors["v.dist_token"],
        "embeddings.position_embeddings": resize_positions(positions, grid, (same_length, patch_grid(config))),
        "embeddings.patch_embeddings.projection.weight": tensors["v.patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": tensors["v.patch_embed.proj.bias"],
    }


def _layer_from_ssast(tensors: Tensors, index: int) -> Tensors:
    source, target = f"v.blocks.{index}", f"layers.{index}"
    weights: Tensors = {}
    for kind in ("weight", "bias"):
        for name, part in zip("qkv", tensors[f"{source}.attn.qkv.{kind}"].chunk(3)):
            weights[f"{target}.attention.{name}_proj.{kind}"] = part
        for ours, theirs in SSAST_LAYER.items():
            weights[f"{target}.{theirs}.{kind}"] = tensors[f"{source}.{ours}.{kind}"]
    return weights
