"""Audio Spectrogram Transformers that start from the weights of image models."""

from __future__ import annotations

from typing import Any, Optional

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import ASTConfig, ASTForAudioClassification, DeiTPreTrainedModel, ViTPreTrainedModel

from ..utils.validation import require, require_positive_integer
from .resize import num_patches, resize_positions


Tensors = dict[str, torch.Tensor]
Grid = tuple[int, int]

# What decides the shapes and the arithmetic of the encoder layers, under the same names in ViT, DeiT and AST.
ENCODER_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "qkv_bias",
)


def ast_from_vit(
    model: nn.Module,
    max_length: int = 1024,
    num_mel_bins: int = 128,
    time_stride: int = 16,
    frequency_stride: int = 16,
    num_labels: Optional[int] = None,
) -> ASTForAudioClassification:
    """Make an AST that starts from the weights of a ViT or DeiT, as AST itself did (Gong et al. 2021, section 2.2).

    The patch kernel is summed over the colour channels. The position embeddings of the image's (rows, columns) become
    those of (frequency, time): an axis that gets shorter is cut around its middle, one that gets longer is interpolated
    linearly. DeiT's two special tokens are taken over. ViT has one; AST's second is its copy, position included, so
    that AST's mean of the two is the class token. The encoder is copied. The head is new.

    Args:
        model: a ViT or DeiT of transformers with any head or none, without adapters. Patches have to be square. It is
            left as it is.
        max_length: number of spectrogram frames (10 ms each).
        num_mel_bins: number of mel bins.
        time_stride: frames from one patch to the next.
        frequency_stride: mel bins from one patch to the next.
        num_labels: number of classes, None for the labels of `model`.

    Returns:
        An `ASTForAudioClassification` of the model's dtype, on its device. Give the feature extractor the same
        `max_length` and `num_mel_bins`. An adapter's checkpoint names the folder of its base model: save this model
        with `save_pretrained` and load it from there before adapters are put on it.

    Raises:
        TypeError: if the model is neither ViT nor DeiT, or has adapters.
        ValueError: if a number is no positive integer, the input is under one patch, or patches are not square.
    """
    if not isinstance(model, (ViTPreTrainedModel, DeiTPreTrainedModel)):
        raise TypeError(
            "ast_from_vit takes a ViT or DeiT of transformers (ViTForImageClassification, ViTModel, "
            f"DeiTForImageClassification, DeiTModel, ...), got {type(model).__name__}."
        )
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise TypeError(f"ast_from_vit takes a model without adapters; this {type(model).__name__} has some.")
    config, trunk = model.config, model.base_model
    image = trunk.embeddings.patch_embeddings
    height, width = image.patch_size
    require(height == width, "patch_size", "the same for rows and columns in an AST", tuple(image.patch_size))
    ast_config = ASTConfig(
        **{name: getattr(config, name) for name in ENCODER_FIELDS},
        **_labels(config, num_labels),
        **input_sizes(height, max_length, num_mel_bins, time_stride, frequency_stride),
    )
    state = trunk.state_dict()
    encoder = {name: state[name] for name in state if name.startswith(("layers.", "layernorm."))}
    grid = (image.image_size[0] // height, image.image_size[1] // width)
    embeddings = _embeddings_from_image(trunk.embeddings, grid, patch_grid(ast_config))
    ast = build_ast(ast_config, {**encoder, **embeddings})
    return ast.to(device=model.device, dtype=model.dtype).train(model.training)


def build_ast(config: ASTConfig, weights: Tensors) -> ASTForAudioClassification:
    ast = ASTForAudioClassification(config)
    ast.base_model.load_state_dict(weights)  # strict: nothing but the head stays at random
    return ast


def input_sizes(patch_size: int, max_length: int, num_mel_bins: int, time_stride: int, frequency_stride: int) -> dict:
    """Return the fields of an ASTConfig that describe its input, checked."""
    lengths = {"max_length": max_length, "num_mel_bins": num_mel_bins}
    sizes = {**lengths, "time_stride": time_stride, "frequency_stride": frequency_stride}
    for name, value in sizes.items():
        require_positive_integer(name, value)
    for name, value in lengths.items():
        require(value >= patch_size, name, f"at least one patch ({patch_size})", value)
    return {"patch_size": patch_size, **sizes}


def patch_grid(config: ASTConfig) -> Grid:
    return (
        num_patches(config.num_mel_bins, config.patch_size, config.frequency_stride),
        num_patches(config.max_length, config.patch_size, config.time_stride),
    )


def _labels(config: Any, num_labels: Optional[int]) -> dict[str, Any]:
    if num_labels is None:
        return {"id2label": dict(config.id2label), "label2id": dict(config.label2id)}
    require_positive_integer("num_labels", num_labels)
    return {"num_labels": num_labels}


def _embeddings_from_image(embeddings: nn.Module, image_grid: Grid, grid: Grid) -> Tensors:
    """Turn the embeddings of an image model, with patches in `image_grid` (rows, columns), into those of an AST."""
    cls_token, positions = embeddings.cls_token.detach(), embeddings.position_embeddings.detach()
    second_token = getattr(embeddings, "distillation_token", None)
    if second_token is None:
        second_token, positions = cls_token, torch.cat([positions[:, :1], positions], dim=1)
    projection = embeddings.patch_embeddings.projection
    return {
        "embeddings.cls_token": cls_token,
        "embeddings.distillation_token": second_token.detach(),
        "embeddings.position_embeddings": resize_positions(positions, image_grid, (image_grid, grid)),
        "embeddings.patch_embeddings.projection.weight": projection.weight.detach().sum(dim=1, keepdim=True),
        "embeddings.patch_embeddings.projection.bias": projection.bias.detach(),
    }
