"""Audio Spectrogram Transformers of other input lengths and strides."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import nn

from ..upstream.peft_layers import has_adapters
from ..utils.validation import require, require_positive_integer


# Where a model's configuration remembers the sizes it was brought to, oldest first. Positions that were cut or
# interpolated once differ from those of a direct step, so an adapter's checkpoint repeats the same steps.
RESIZES = "ast_resizes"


def resize_ast(
    model: nn.Module,
    max_length: Optional[int] = None,
    time_stride: Optional[int] = None,
    frequency_stride: Optional[int] = None,
) -> nn.Module:
    """Bring an AST to another input length or patch stride, in place.

    Position embeddings follow AST's rule (Gong et al. 2021, section 2.2): an axis that gets shorter is cut around its
    middle, one that gets longer is interpolated linearly. A new stride changes how far apart the patches are, so the
    axis is first interpolated to the number of patches that the present length has at that stride.

    Args:
        model: an `ASTForAudioClassification` or `ASTModel`, before adapters are put on it.
        max_length: number of spectrogram frames (10 ms each), None to keep it.
        time_stride: frames from one patch to the next, None to keep it.
        frequency_stride: mel bins from one patch to the next, None to keep it.

    Returns:
        The same model; its configuration has the new values. Give the feature extractor the same `max_length`.

    Raises:
        TypeError: if the model is no AST.
        ValueError: if a value is no positive integer, or `max_length` is under one patch.
    """
    embeddings = _ast_embeddings(model)
    config = embeddings.config
    asked = {"max_length": max_length, "time_stride": time_stride, "frequency_stride": frequency_stride}
    target = {name: getattr(config, name) if value is None else value for name, value in asked.items()}
    for name, value in target.items():
        require_positive_integer(name, value)
    rule = f"at least one patch ({config.patch_size} frames)"
    require(target["max_length"] >= config.patch_size, "max_length", rule, target["max_length"])
    if all(getattr(config, name) == value for name, value in target.items()):
        return model

    patch, bins = config.patch_size, config.num_mel_bins
    old_grid = embeddings.get_shape(config)
    same_length = (
        num_patches(bins, patch, target["frequency_stride"]),
        num_patches(config.max_length, patch, target["time_stride"]),
    )
    new_grid = (same_length[0], num_patches(target["max_length"], patch, target["time_stride"]))
    with torch.no_grad():
        positions = resize_positions(embeddings.position_embeddings, old_grid, (same_length, new_grid))
    embeddings.position_embeddings = nn.Parameter(
        positions, requires_grad=embeddings.position_embeddings.requires_grad
    )
    embeddings.patch_embeddings.projection.stride = (target["frequency_stride"], target["time_stride"])
    for each in {id(config): config, id(model.config): model.config}.values():
        each.update(target)
        setattr(each, RESIZES, [*getattr(each, RESIZES, []), dict(target)])
    return model


def _ast_embeddings(model: Any) -> nn.Module:
    embeddings = getattr(getattr(model, "base_model", model), "embeddings", None)
    is_ast = hasattr(embeddings, "position_embeddings") and hasattr(model.config, "time_stride")
    if not is_ast or has_adapters(model):
        raise TypeError(
            "resize_ast takes an ASTForAudioClassification or an ASTModel without adapters, got "
            f"{type(model).__name__}. Resize the model first, then call get_peft_model."
        )
    return embeddings


def num_patches(length: int, patch_size: int, stride: int) -> int:
    return (length - patch_size) // stride + 1


def resize_positions(
    positions: torch.Tensor, grid: tuple[int, int], steps: tuple[tuple[int, int], ...]
) -> torch.Tensor:
    """Bring position embeddings from one (frequency, time) grid to another; those of special tokens stay.

    Args:
        positions: `(1, special + frequency * time, d)`.
        grid: the grid they are of.
        steps: the grid of the same input length, which the whole axes are interpolated to (another stride), and the
            grid of the new length, where an axis that gets shorter is cut around its middle.

    Returns:
        `(1, special + new frequency * new time, d)`
    """
    num_special = positions.shape[1] - grid[0] * grid[1]
    special, patches = positions[:, :num_special], positions[:, num_special:]
    patches = patches.transpose(1, 2).unflatten(2, grid)
    same_length, new_grid = steps
    patches = _interpolate(patches, same_length)
    for axis, size in zip((2, 3), new_grid):
        if size < patches.shape[axis]:
            patches = patches.narrow(axis, patches.shape[axis] // 2 - size // 2, size)
    patches = _interpolate(patches, new_grid)
    return torch.cat([special, patches.flatten(2).transpose(1, 2)], dim=1).contiguous()


def _interpolate(grid: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if grid.shape[2:] == torch.Size(size):
        return grid
    return nn.functional.interpolate(grid.float(), size=size, mode="bilinear").to(grid.dtype)
