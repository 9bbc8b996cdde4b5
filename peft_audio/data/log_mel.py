"""Log-mel spectrograms as the feature extractors of transformers make them, of all frames at once.

The extractors go through a clip frame by frame in 64-bit numbers. 32-bit ones would not do: a Fourier transform in them is
off by more than 1e-4 of a log-mel wherever a frame has a bin 50 dB below its loudest. So frames and transforms have 64 bits
here too, and only what follows, which is sums of squares, has 32 on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.nn.functional import pad


# Of the extractors that follow Kaldi, in samples and as they are written there.
FRAME, HOP, TRANSFORM = 400, 160, 512
PREEMPHASIS = 0.97
FLOOR = 1.192092955078125e-07
BLOCK = math.gcd(FRAME, HOP)  # means of frames are sums of blocks, which they share
MEL_GROUP = 32  # mel bins whose filters are applied together
SHORTEST = FRAME - HOP  # samples; for fewer the extractors count less than no frames

WHISPER_FLOOR, WHISPER_RANGE = 1e-10, 8.0
FRAMES_AT_ONCE = {"cpu": 256}  # what stays in a core's cache
DEFAULT_FRAMES_AT_ONCE = 1 << 16  # of all clips, a quarter of a GB


def kaldi_log_mel(waveforms: torch.Tensor, window: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Return log-mel filter bank energies, with preemphasis and without the frames' mean.

    Args:
        waveforms: `(clips, samples)`, at least 240 samples; fewer than 400 have no frame.
        window: `(400,)`, float64.
        filters: `(257, mel bins)`, float64.

    Returns:
        `(clips, frames, mel bins)`, float32, on the device of the waveforms.

    Raises:
        ValueError: a waveform has fewer than 240 samples.
    """
    if waveforms.shape[1] < SHORTEST:
        raise ValueError(
            f"a waveform must have at least {SHORTEST} samples for a spectrogram, got {waveforms.shape[1]}."
        )
    waveforms = waveforms.double()
    frames = max(0, 1 + (waveforms.shape[1] - FRAME) // HOP)
    result = waveforms.new_empty(len(waveforms), frames, filters.shape[1], dtype=torch.float32)
    if frames == 0:
        return result
    filters = filters.float() if _has_full_products(waveforms.device) else filters
    bands = _bands(filters)
    for part, spectrum in _kaldi_spectra(waveforms, frames, window):
        power = _power(spectrum, filters.dtype)
        for bins, mels in bands:
            result[:, part, mels] = power[..., bins] @ filters[bins, mels]
    return result.clamp_(min=FLOOR).log_()


def _bands(filters: torch.Tensor) -> list[tuple[slice, slice]]:
    """Return groups of mel bins, and the bins of the transform that their filters read: most filters read few."""
    bands, reads = [], filters.bool().cpu()
    for start in range(0, filters.shape[1], MEL_GROUP):
        mels = slice(start, start + MEL_GROUP)
        read = reads[:, mels].any(1).nonzero()
        bins = slice(int(read[0]), int(read[-1]) + 1) if len(read) else slice(0, 1)
        bands.append((bins, mels))
    return bands


def frame_count(samples: int) -> int:
    """Return the number of frames in a waveform.

    Raises:
        ValueError: it has fewer than 240 samples.
    """
    if samples < SHORTEST:
        raise ValueError(f"a waveform must have at least {SHORTEST} samples for a spectrogram, got {samples}.")
    return max(0, 1 + (samples - FRAME) // HOP)


def _has_full_products(device: torch.device) -> bool:
    """Whether products of float32 matrices are sure to have 32 bits; a GPU may be told to round to TF32 anywhere."""
    return device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"


def _kaldi_spectra(waveforms: torch.Tensor, frames: int, window: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield some frames after the other, and their transforms `(clips, frames, 257)`."""
    rest = 1 - PREEMPHASIS
    whole = waveforms[:, : waveforms.shape[1] // BLOCK * BLOCK]
    sums = whole.unflatten(1, (-1, BLOCK)).sum(-1).unfold(1, FRAME // BLOCK, HOP // BLOCK).sum(-1)
    means = sums[:, :frames] / FRAME
    # Preemphasis of a frame without its mean is that of the waveform, less a share of the mean; but for the first sample.
    emphasized = pad(torch.sub(waveforms[:, 1:], waveforms[:, :-1], alpha=PREEMPHASIS), (1, 0)).unfold(1, FRAME, HOP)
    first = (waveforms[:, ::HOP][:, :frames] - means) * rest * window[0]
    means = means.unsqueeze(-1)
    step = _frames_at_once(waveforms)
    buffer = waveforms.new_zeros(len(waveforms), min(step, frames), TRANSFORM)
    for start in range(0, frames, step):
        part = slice(start, min(start + step, frames))
        size = part.stop - start
        torch.mul(emphasized[:, part], window, out=buffer[:, :size, :FRAME])
        buffer[:, :size, :FRAME].addcmul_(means[:, part], window, value=-rest)
        buffer[:, :size, 0] = first[:, part]
        yield part, torch.fft.rfft(buffer[:, :size])


def _frames_at_once(waveforms: torch.Tensor) -> int:
    return max(1, FRAMES_AT_ONCE.get(waveforms.device.type, DEFAULT_FRAMES_AT_ONCE) // len(waveforms))


def _power(spectrum: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return squares of absolute values in a dtype. Overwrites the spectrum if it has that already."""
    squares = torch.view_as_real(spectrum).to(dtype).square_()
    return squares[..., 0] + squares[..., 1]


def whisper_log_mel(
    waveforms: torch.Tensor, hop: int, size: int, filters: torch.Tensor, sounding: int
) -> torch.Tensor:
    """Return Whisper's log-mel spectrograms: at most 80 dB below the loudest of the clip, shifted and scaled.

    Its extractor uses 32-bit transforms, so these do.

    Args:
        waveforms: `(clips, samples)`, float32, with more samples than half a transform.
        hop: samples from one frame to the next.
        size: samples of a transform.
        filters: `(size // 2 + 1, mel bins)`, float64.
        sounding: samples after which all clips are 0: frames of nothing else are not computed.

    Returns:
        `(clips, mel bins, frames)`, float32, on the device of the waveforms.
    """
    half = size // 2
    frames = (waveforms.shape[1] + 2 * half - size) // hop
    needed = min(frames, math.ceil((sounding + half) / hop))
    end = (needed - 1) * hop + size - half
    if needed < frames and half < end <= waveforms.shape[1]:
        padded = pad(waveforms[:, None, :end], (half, 0), mode="reflect")[:, 0]
    else:
        needed = frames
        padded = pad(waveforms[:, None], (half, half), mode="reflect")[:, 0]
    framed = padded.unfold(1, size, hop)
    window = torch.hann_window(size, device=waveforms.device)
    filters = filters.float() if _has_full_products(waveforms.device) else filters
    log_mel = waveforms.new_full((len(waveforms), filters.shape[1], frames), math.log10(WHISPER_FLOOR))
    step = _frames_at_once(waveforms)
    for start in range(0, needed, step):
        part = slice(start, min(start + step, needed))
        energy = _power(torch.fft.rfft(framed[:, part] * window), filters.dtype) @ filters
        log_mel[:, :, part] = energy.float().clamp_(min=WHISPER_FLOOR).log10_().transpose(1, 2)
    loudest = log_mel.amax(dim=(1, 2), keepdim=True)
    return torch.maximum(log_mel, loudest - WHISPER_RANGE, out=log_mel).add_(4.0).div_(4.0)
