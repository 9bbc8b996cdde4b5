"""Changing the input length and the strides of Audio Spectrogram Transformers."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import nn
from transformers import ASTConfig

from ..upstream.peft_modules import has_adapters
from ..upstream.transformers_models import replaces
from ..utils.validation import require, require_positive_integer


# Field of a model's configuration: the sizes that it was resized to, oldest first. Resizing in two steps does not give
# the position embeddings of one direct step, so loading an adapter repeats the same steps.
RESIZES = "ast_resizes"

Grid = tuple[int, int]  # numbers of patches along (frequency, time)


def resize_ast(
    model: nn.Module,
    max_length: Optional[int] = None,
    time_stride: Optional[int] = None,
    frequency_stride: Optional[int] = None,
) -> nn.Module:
    """Change the input length or the patch strides of an AST, in place.

    Position embeddings follow AST's rule (Gong et al. 2021, section 2.2): an axis that gets shorter is cut around its
    middle, one that gets longer is interpolated linearly. For a new stride the axis is first interpolated to the number
    of patches that the present length has at that stride.

    Args:
        model: an `ASTForAudioClassification` or `ASTModel`, before adapters are put on it.
        max_length: number of spectrogram frames (10 ms each); None keeps it.
        time_stride: frames from one patch to the next; None keeps it.
        frequency_stride: mel bins from one patch to the next; None keeps it.

    Returns:
        The same model; its configuration has the new values. Give the feature extractor the same `max_length`.

    Raises:
        TypeError: if the model is not an AST, or has adapters.
        ValueError: if a value is not a positive integer, or `max_length` is under one patch.

    Examples:
        >>> model = ASTForAudioClassification(ASTConfig(hidden_size=12, num_hidden_layers=1))
        >>> model = peft_audio.resize_ast(model, max_length=512, time_stride=16)
        >>> model.config.max_length, model.config.time_stride
        (512, 16)
    """
    asked = {"max_length": max_length, "time_stride": time_stride, "frequency_stride": frequency_stride}
    embeddings = _ast_embeddings(model)
    target = _target_sizes(embeddings.config, asked)
    if any(getattr(embeddings.config, name) != value for name, value in target.items()):
        _resize_positions_of(embeddings, target)
        _remember([embeddings.config, model.config], target)
    return model


def _ast_embeddings(model: Any) -> Any:
    embeddings = getattr(getattr(model, "base_model", model), "embeddings", None)
    is_ast = hasattr(embeddings, "position_embeddings") and hasattr(model.config, "time_stride")
    if not is_ast or has_adapters(model):
        raise TypeError(
            "resize_ast takes an ASTForAudioClassification or an ASTModel without adapters, got "
            f"{type(model).__name__}. Resize the model first, then call get_peft_model."
        )
    return embeddings


def _target_sizes(config: ASTConfig, asked: dict[str, Optional[int]]) -> dict[str, int]:
    """Return the asked sizes, with the configuration's in place of None, or raise ValueError."""
    target = {name: getattr(config, name) if value is None else value for name, value in asked.items()}
    for name, value in target.items():
        require_positive_integer(name, value)
    patch_size: Any = config.patch_size
    rule = f"at least one patch ({patch_size} frames)"
    require(target["max_length"] >= patch_size, "max_length", rule, target["max_length"])
    return target


def _remember(configs: list[Any], target: dict[str, int]) -> None:
    for config in {id(config): config for config in configs}.values():  # an ASTModel and its embeddings share theirs
        config.update(target)
        setattr(config, RESIZES, [*getattr(config, RESIZES, []), dict(target)])


def _resize_positions_of(embeddings: Any, target: dict[str, int]) -> None:
    """Give the embeddings of an AST the positions and the strides of the target sizes."""
    config = embeddings.config
    strides = (target["frequency_stride"], target["time_stride"])
    same_length = patch_grid(config, strides)
    new_grid = (same_length[0], num_patches(target["max_length"], config.patch_size, target["time_stride"]))
    old_positions = embeddings.position_embeddings
    with torch.no_grad():
        positions = resize_positions(old_positions, patch_grid(config), (same_length, new_grid))
    new_positions = nn.Parameter(positions, requires_grad=old_positions.requires_grad)
    embeddings.position_embeddings = replaces(new_positions, old_positions)
    embeddings.patch_embeddings.projection.stride = strides


def num_patches(length: int, patch_size: int, stride: int) -> int:
    """Return how many patches fit along an axis, without padding."""
    return (length - patch_size) // stride + 1


def patch_grid(config: ASTConfig, strides: Optional[tuple[int, int]] = None) -> Grid:
    """Return the numbers of patches along (frequency, time).

    Args:
        config: configuration of an AST.
        strides: along (frequency, time), instead of the configuration's.
    """
    frequency_stride, time_stride = strides or (config.frequency_stride, config.time_stride)
    size: Any = config.patch_size  # transformers allows two numbers; an AST's patches are square
    return (
        num_patches(config.num_mel_bins, size, frequency_stride),
        num_patches(config.max_length, size, time_stride),
    )


def resize_positions(positions: torch.Tensor, grid: Grid, steps: tuple[Grid, Grid]) -> torch.Tensor:
    """Change the grid of position embeddings; those of the special tokens stay.

    Args:
        positions: `(1, special + frequency * time, d)`.
        grid: their present grid, (frequency, time).
        steps: two grids. The axes are first interpolated to the one for the same input length (with other strides).
            Then they are cut around the middle or interpolated to the one for the new length.

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


def _interpolate(grid: torch.Tensor, size: Grid) -> torch.Tensor:
    if grid.shape[2:] == torch.Size(size):
        return grid
    return nn.functional.interpolate(grid.float(), size=size, mode="bilinear").to(grid.dtype)
