"""What a model attends to in a sound, drawn over the sound's spectrogram.

attention = attention_map(model, inputs, seconds=5.0)
draw(waveform, 16000, attention).savefig("attention.png")
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import librosa
import numpy as np
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from peft import PeftModel
from transformers import PreTrainedModel

from peft_audio.backbones.table import resolve


MEL_BINS, MIN_HZ, HOP_SECONDS = 128, 20, 0.01  # as AST's feature extractor has them
TICKS_HZ = (100, 500, 1000, 2000, 4000, 8000)
Span = tuple[float, float]


class AttentionMap(NamedTuple):
    """How a model's attention is spread over its input.

    Args:
        weights: of each token, `(rows of frequency, columns of time)`, low frequencies first, with a sum of 1. Models whose
            tokens are no patches have one row.
        seconds: where the first column begins and the last one ends.
        frequencies: the same of the rows, as shares of the mel axis.
    """

    weights: np.ndarray
    seconds: Span
    frequencies: Span


@torch.inference_mode()
def attention_map(
    model: PreTrainedModel | PeftModel, inputs: Mapping[str, torch.Tensor], seconds: float, **options: Any
) -> AttentionMap | None:
    """The attention of the last encoder layer to each part of one clip; None where the model does not give it.

    It is the mean over heads, and over the tokens that the head reads: the special tokens where there are some, else all.
    What prompts and special tokens get is left out, and the rest is scaled to a sum of 1.

    Args:
        model: a classifier in evaluation mode, with `attn_implementation="eager"`, with or without adapters.
        inputs: one clip as the model takes it.
        seconds: how long the input is, padding included.
        options: further arguments of the call, such as `adapter_names`.
    """
    backbone = resolve(model.get_base_model() if isinstance(model, PeftModel) else model)
    patches: list[tuple] = []
    projection = backbone.patch_projection
    hooks = [] if projection is None else [projection.register_forward_hook(lambda *call: patches.append(call))]
    try:
        attentions = model(**inputs, output_attentions=True, **options).attentions
    finally:
        for hook in hooks:
            hook.remove()
    if not attentions or attentions[-1] is None:
        return None
    read = attentions[-1][0, :, : backbone.spec.read_tokens].float().mean(dim=(0, 1)).cpu().numpy()
    (rows, columns), spans = (1, attentions[-1].shape[2]), [(0.0, 1.0), (0.0, 1.0)]
    if patches:
        projection, (image,), grid = patches[-1]
        rows, columns = grid.shape[-2:]
        sizes = zip(image.shape[-2:], grid.shape[-2:], projection.kernel_size, projection.stride)
        spans = [covered(*of_axis) for of_axis in sizes]
    # Prompts and special tokens come first.
    weights = read[-rows * columns :].reshape(rows, columns)
    if backbone.spec.rows_are_time:
        weights, spans = weights.T, spans[::-1]  # frequency, then time
    begin, end = spans[1]
    return AttentionMap(weights / weights.sum(), (begin * seconds, end * seconds), spans[0])


def covered(length: int, count: int, kernel_size: int, stride: int) -> Span:
    """Where `count` patches begin and end, as shares of an axis of this length; each reaches half a stride from its middle."""
    begin = (kernel_size - stride) / 2
    return begin / length, (begin + count * stride) / length


def draw(waveform: np.ndarray, sampling_rate: int, attention: AttentionMap | None) -> Figure:
    """Draws the spectrogram of a mono waveform `(samples,)`, and the attention to its parts over it, if any."""
    mel = librosa.feature.melspectrogram(
        y=waveform,
        sr=sampling_rate,
        n_fft=1024,
        hop_length=round(HOP_SECONDS * sampling_rate),
        n_mels=MEL_BINS,
        fmin=MIN_HZ,
        htk=True,
    )
    seconds = len(waveform) / sampling_rate
    figure = Figure(figsize=(10, 3.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    shown = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}
    axes.imshow(librosa.power_to_db(mel, ref=np.max), cmap="gray_r", extent=(0, seconds, 0, 1), **shown)
    if attention is not None:
        shares = attention.weights * attention.weights.size
        # One token often gets many times what the others get; its color is that of the highest percent.
        colors = Normalize(0, np.percentile(shares, 99), clip=True)
        extent = (*attention.seconds, *attention.frequencies)
        overlay = axes.imshow(
            shares, cmap="plasma", norm=colors, alpha=0.6 * colors(shares).data, extent=extent, **shown
        )
        figure.colorbar(overlay, ax=axes, extend="max", label="attention / its mean")
    axes.set(xlim=(0, seconds), ylim=(0, 1), xlabel="time (s)", ylabel="frequency (kHz)")
    low, high = librosa.hz_to_mel([MIN_HZ, sampling_rate / 2], htk=True)
    ticks = [hz for hz in TICKS_HZ if hz <= sampling_rate / 2]
    axes.set_yticks((librosa.hz_to_mel(ticks, htk=True) - low) / (high - low), [f"{hz / 1000:g}" for hz in ticks])
    return figure
