"""Audio Spectrogram Transformers that start from the weights of image models."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import nn
from transformers import ASTConfig, ASTForAudioClassification, DeiTPreTrainedModel, ViTPreTrainedModel

from ..upstream.peft_modules import has_adapters
from ..utils.validation import require, require_positive_integer
from .resize import Grid, patch_grid, resize_positions


Tensors = dict[str, torch.Tensor]

# Fields that define the encoder layers. ViT, DeiT and AST have the same names for them.
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

    The patch kernel is summed over the color channels. The position embeddings of the image's (rows, columns) become
    those of (frequency, time), by the rules of `resize_ast`. DeiT's two special tokens are copied; ViT has one, and AST
    gets it twice, so that AST's mean of the two is the class token. The encoder is copied. The head is new.

    Args:
        model: a ViT or DeiT of transformers, without adapters, with square patches. It is not changed.
        max_length: number of spectrogram frames (10 ms each).
        num_mel_bins: number of mel bins.
        time_stride: frames from one patch to the next.
        frequency_stride: mel bins from one patch to the next.
        num_labels: number of classes; None keeps the labels of `model`.

    Returns:
        An `ASTForAudioClassification` of the model's dtype, on its device. Give the feature extractor the same
        `max_length` and `num_mel_bins`. Before you put adapters on it, save it and load it from there: an adapter's
        checkpoint names the folder of its base model.

    Raises:
        TypeError: if the model is neither ViT nor DeiT, or has adapters.
        ValueError: if a number is not a positive integer, the input is under one patch, or patches are not square.

    Examples:
        >>> vit = ViTModel(ViTConfig(hidden_size=12, num_hidden_layers=1))
        >>> ast = peft_audio.ast_from_vit(vit, max_length=512, num_labels=50)
        >>> ast.config.max_length, ast.config.num_labels
        (512, 50)
    """
    _check_image_model(model)
    return _convert(model, (max_length, num_mel_bins, time_stride, frequency_stride), num_labels)


def _check_image_model(model: Any) -> None:
    if not isinstance(model, (ViTPreTrainedModel, DeiTPreTrainedModel)):
        raise TypeError(
            "ast_from_vit takes a ViT or DeiT of transformers (ViTForImageClassification, ViTModel, "
            f"DeiTForImageClassification, DeiTModel, ...), got {type(model).__name__}."
        )
    if has_adapters(model):
        raise TypeError(f"ast_from_vit takes a model without adapters; this {type(model).__name__} has some.")


def _convert(model: Any, sizes: tuple[int, int, int, int], num_labels: Optional[int]) -> ASTForAudioClassification:
    config, encoder = model.config, model.base_model
    image = encoder.embeddings.patch_embeddings
    height, width = image.patch_size
    require(height == width, "patch_size", "the same for rows and columns in an AST", tuple(image.patch_size))
    ast_config = ASTConfig(
        **{name: getattr(config, name) for name in ENCODER_FIELDS},
        **_labels(config, num_labels),
        **input_sizes(height, *sizes),
    )
    state = encoder.state_dict()
    layers = {name: state[name] for name in state if name.startswith(("layers.", "layernorm."))}
    grid = (image.image_size[0] // height, image.image_size[1] // width)
    embeddings = _embeddings_from_image(encoder.embeddings, grid, patch_grid(ast_config))
    ast: Any = build_ast(ast_config, {**layers, **embeddings})
    return ast.to(device=model.device, dtype=model.dtype).train(model.training)


def build_ast(config: ASTConfig, weights: Tensors) -> ASTForAudioClassification:
    """Return an AST with a new head.

    Args:
        config: its configuration.
        weights: all tensors of its `ASTModel`, by name.

    Raises:
        RuntimeError: if a tensor is missing, unknown or of another shape.
    """
    ast = ASTForAudioClassification(config)
    ast.base_model.load_state_dict(weights)  # strict: only the head keeps random values
    return ast


def input_sizes(
    patch_size: int, max_length: int, num_mel_bins: int, time_stride: int, frequency_stride: int
) -> dict[str, Any]:
    """Return the fields of an `ASTConfig` that describe its input.

    Args:
        patch_size: frames and mel bins of a patch.
        max_length: number of spectrogram frames.
        num_mel_bins: number of mel bins.
        time_stride: frames from one patch to the next.
        frequency_stride: mel bins from one patch to the next.

    Raises:
        ValueError: if a number is not a positive integer, or the input is under one patch.
    """
    lengths = {"max_length": max_length, "num_mel_bins": num_mel_bins}
    sizes = {**lengths, "time_stride": time_stride, "frequency_stride": frequency_stride}
    for name, value in sizes.items():
        require_positive_integer(name, value)
    for name, value in lengths.items():
        require(value >= patch_size, name, f"at least one patch ({patch_size})", value)
    return {"patch_size": patch_size, **sizes}


def _labels(config: Any, num_labels: Optional[int]) -> dict[str, Any]:
    if num_labels is None:
        return {"id2label": dict(config.id2label), "label2id": dict(config.label2id)}
    require_positive_integer("num_labels", num_labels)
    return {"num_labels": num_labels}


def _embeddings_from_image(embeddings: Any, image_grid: Grid, grid: Grid) -> Tensors:
    """Return the embeddings of an AST, made of an image model's with patches in `image_grid` (rows, columns)."""
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
