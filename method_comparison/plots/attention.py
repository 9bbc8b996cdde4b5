"""What an AST attends to at a chosen time, before and after adaptation, as figure 3 of the LoAA paper."""

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from peft import PeftModel
from transformers import ASTConfig, PreTrainedModel

from peft_audio.ast.resize import num_patches


Grid = np.ndarray  # (frequency patches, time patches), low frequencies first


@torch.no_grad()
def attention_map(
    model: PreTrainedModel | PeftModel,
    input_values: ArrayLike | torch.Tensor,
    layer: int = -1,
    frames: tuple[int, int] = (320, 336),
    head: int | None = None,
    frequency_patch: int | None = None,
) -> Grid:
    """The attention of the patches at a time to all patches of the spectrogram.

    Special tokens and prompts are left out, and what remains is scaled to a sum of 1. Of several patches and heads the
    mean is taken. The LoAA paper's figure is the last layer at frames 320 to 336, one patch of a stride of 16.

    Args:
        model: an AST classifier in evaluation mode with `attn_implementation="eager"`, with or without adapters; those
            that are active count.
        input_values: one spectrogram as the model takes it, `(max_length, num_mel_bins)`.
        layer: index of the encoder layer, negative from the end.
        frames: first frame of the time (10 ms each) and the one after its last. The patches with their middle in there
            are taken.
        head: index of the attention head; None: the mean over all.
        frequency_patch: index of the patch, from the lowest frequencies; None: the mean over all at that time.

    Returns:
        `(frequency patches, time patches)`, float64, low frequencies first.

    Raises:
        ValueError: the model is no AST, trains, or does not give its attention; the spectrogram has another shape or
            values that are not finite; there is no such layer, head or patch, or no patch at that time.
    """
    config = checked_config(model)
    check_choice(config, layer, head, frequency_patch)
    times = patches_at(frames, config)
    inputs = torch.as_tensor(checked_spectrogram(input_values, config), device=model.device, dtype=model.dtype)
    weights = model(input_values=inputs[None], output_attentions=True).attentions[layer][0]
    weights = between_patches(weights, grid_of(config))[:, :, times].mean(axis=2)
    for index in (head, frequency_patch):
        weights = weights.mean(axis=0) if index is None else weights[index]
    return weights / weights.sum()


def check_choice(config: ASTConfig, layer: int, head: int | None, frequency_patch: int | None) -> None:
    check_index("layer", layer, -config.num_hidden_layers, config.num_hidden_layers)
    check_index("head", head, 0, config.num_attention_heads)
    check_index("frequency_patch", frequency_patch, 0, grid_of(config)[0])


def between_patches(weights: torch.Tensor, grid: tuple[int, int]) -> np.ndarray:
    """A layer's attention weights `(heads, tokens, tokens)` as float64, those of patches alone: `(heads, *grid, *grid)`."""
    # Rows and columns of prompts, then of special tokens, are in front of those of the patches.
    patches = grid[0] * grid[1]
    return weights[:, -patches:, -patches:].double().cpu().numpy().reshape(-1, *grid, *grid)


def before_and_after(model: PeftModel, input_values: ArrayLike | torch.Tensor, **options) -> tuple[Grid, Grid]:
    """The attention maps without the adapters and with those that are active; `options` as `attention_map` takes them.

    Raises:
        ValueError: there are no adapters on the model, or as `attention_map`.
    """
    if not isinstance(model, PeftModel):
        raise ValueError(f"`model` must be a PeftModel, with an adapter to compare to, got {type(model).__name__}.")
    with model.disable_adapter():
        before = attention_map(model, input_values, **options)
    return before, attention_map(model, input_values, **options)


def plot_attention(
    input_values: ArrayLike | torch.Tensor,
    before: ArrayLike,
    after: ArrayLike,
    config: ASTConfig,
    frames: tuple[int, int] = (320, 336),
) -> Figure:
    """Draws the spectrogram and both maps side by side, with lines around the chosen time.

    Both maps have the same colors for the same attention.

    Args:
        input_values: the spectrogram, `(max_length, num_mel_bins)`.
        before: the map without adapters, see `attention_map`.
        after: the map with them.
        config: of the model.
        frames: as they were given to `attention_map`.

    Raises:
        ValueError: a shape is not that of the model's spectrograms or patches, or a value is not finite.
    """
    spectrogram = checked_spectrogram(input_values, config)
    patches_at(frames, config)
    maps = [upscaled(attention, config) for attention in (before, after)]
    figure = Figure(figsize=(15, 4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    extent = (0, config.max_length, 0, config.num_mel_bins)
    shown = {"origin": "lower", "aspect": "auto", "extent": extent, "interpolation": "nearest"}
    panels[0].imshow(spectrogram.T, cmap="magma", **shown)
    for axes, values in zip(panels[1:], maps):
        image = axes.imshow(values, cmap="viridis", vmin=0, vmax=max(values.max() for values in maps), **shown)
    figure.colorbar(image, ax=panels[1:], label="share of the attention, per patch")
    for axes, title in zip(panels, ("spectrogram", "attention before adaptation", "attention after adaptation")):
        axes.set(title=title, xlabel="frame (10 ms)")
        for frame in frames:
            axes.axvline(frame, color="white", linestyle="--", linewidth=1)
    panels[0].set_ylabel("mel bin")
    return figure


def upscaled(attention: ArrayLike, config: ASTConfig) -> np.ndarray:
    """The map in the size of the spectrogram, `(num_mel_bins, max_length)`: each point has the value of its nearest patch.

    Raises:
        ValueError: the map has not the shape of the model's patches, or values that are not finite.
    """
    attention, grid = np.asarray(attention, dtype=np.float64), grid_of(config)
    if attention.shape != grid:
        raise ValueError(f"An attention map of this model has shape {grid} (frequency, time), got {attention.shape}.")
    if not np.isfinite(attention).all():
        raise ValueError("The attention map must be finite numbers, got some that are not.")
    rows = nearest_patches(config.num_mel_bins, config.patch_size, config.frequency_stride)
    columns = nearest_patches(config.max_length, config.patch_size, config.time_stride)
    return attention[np.ix_(rows, columns)]


def grid_of(config: ASTConfig) -> tuple[int, int]:
    """How many patches the model has, over frequency and over time."""
    return (
        num_patches(config.num_mel_bins, config.patch_size, config.frequency_stride),
        num_patches(config.max_length, config.patch_size, config.time_stride),
    )


def middles(length: int, patch_size: int, stride: int) -> np.ndarray:
    """Where the middles of the patches lie along an axis, in frames or mel bins."""
    return np.arange(num_patches(length, patch_size, stride)) * stride + patch_size / 2


def nearest_patches(length: int, patch_size: int, stride: int) -> np.ndarray:
    """The index of the patch that is nearest to each frame or mel bin, `(length,)`."""
    distances = np.arange(length)[:, None] + 0.5 - middles(length, patch_size, stride)
    return np.abs(distances).argmin(axis=1)


def patches_at(frames: tuple[int, int], config: ASTConfig) -> np.ndarray:
    """The indices of the patches over time with their middle in `frames`. Raises `ValueError` where there is none."""
    first, end = frames
    if not 0 <= first < end <= config.max_length:
        raise ValueError(
            f"`frames` must be a first frame and the one after the last, within the {config.max_length} of the model, "
            f"got {tuple(frames)}."
        )
    centers = middles(config.max_length, config.patch_size, config.time_stride)
    found = np.flatnonzero((first <= centers) & (centers < end))
    if not found.size:
        raise ValueError(
            f"`frames` {tuple(frames)} has the middle of no patch in it: they lie at {centers[0]:g}, {centers[0]:g} + "
            f"{config.time_stride}, ... up to {centers[-1]:g}. Take {config.time_stride} frames or more."
        )
    return found


def checked_config(model: PreTrainedModel | PeftModel) -> ASTConfig:
    """The model's configuration. Raises `ValueError` unless it is an AST that gives its attention."""
    config = getattr(model, "config", None)
    if not isinstance(config, ASTConfig):
        raise ValueError(f"`model` must be an AST, got {type(model).__name__} with {type(config).__name__}.")
    if config._attn_implementation != "eager":
        raise ValueError(
            f"`model` computes attention with {config._attn_implementation!r}, which does not give the weights: call "
            "model.set_attn_implementation('eager'), or load it with attn_implementation='eager'."
        )
    if model.training:
        raise ValueError("`model` is in training mode, where dropout changes the attention: call model.eval().")
    return config


def checked_spectrogram(input_values: ArrayLike | torch.Tensor, config: ASTConfig) -> np.ndarray:
    values = input_values.detach().float().cpu() if isinstance(input_values, torch.Tensor) else input_values
    values, shape = np.asarray(values, dtype=np.float32), (config.max_length, config.num_mel_bins)
    if values.shape != shape:
        raise ValueError(
            f"`input_values` must have the shape {shape} of one spectrogram of the model (frames, mel bins), got "
            f"{values.shape}."
        )
    if not np.isfinite(values).all():
        raise ValueError("`input_values` must be finite numbers, got some that are not.")
    return values


def check_index(name: str, value: int | None, first: int, end: int) -> None:
    if value is not None and not first <= value < end:
        raise ValueError(f"`{name}` must lie between {first} and {end - 1} in this model, got {value}.")
