"""Decodes audio files with soundfile and librosa, without torchcodec or FFmpeg; what cannot be used is named."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import Optional, Union

import librosa
import numpy as np
import soundfile

from .clips import Clip


logger = logging.getLogger(__name__)

SILENCE = 1e-4  # peak-to-peak, of a full scale of 2: some three steps of 16-bit audio, so dither counts as silence
RATES = (1_000, 1_000_000)  # Hz: wider than what is recorded


class BadAudioError(ValueError):
    """Some audio files cannot be used.

    Args:
        bad_files: the reasons by the files' names.
        total: how many files were read.
    """

    def __init__(self, bad_files: dict[str, str], total: int) -> None:
        self.bad_files = bad_files
        super().__init__(
            f"{len(bad_files)} of {total} audio files cannot be used:\n{_listed(bad_files)}\n"
            "Repair or remove them, or set skip_bad_files to leave them out."
        )


def load_waveform(
    source: Union[Path, bytes],
    sampling_rate: int,
    min_seconds: float = 0.0,
    start: float = 0.0,
    stop: Optional[float] = None,
) -> np.ndarray:
    """Decode one file to mono.

    Args:
        source: the file, or the bytes of one.
        sampling_rate: of the result, in Hz.
        min_seconds: a shorter sound cannot be used.
        start: decode from here, in seconds. The other checks are about the decoded part alone.
        stop: decode to here, in seconds; None for the end of the file, and so is what lies behind it.

    Returns:
        The waveform `(samples,)`, float32, full scale +-1.

    Raises:
        ValueError: the file is missing, undecodable, empty, silent, not finite, or shorter than `min_seconds`, or its
            header gives no sampling rate of sound; or not 0 <= start < stop.
    """
    if not (0 <= start < np.inf and (stop is None or start < stop)):
        raise ValueError(f"start and stop must be 0 <= start < stop (seconds), got {start} and {stop}")
    if isinstance(source, Path) and not source.is_file():
        raise ValueError("no such file")
    if (len(source) if isinstance(source, bytes) else source.stat().st_size) == 0:
        raise ValueError("empty (0 bytes)")
    waveform, rate = _decode(source, start, stop)
    if waveform.size == 0:
        raise ValueError(f"empty (no samples{f' from {start:g} s on' if start else ''})")
    if not np.isfinite(waveform).all():
        raise ValueError("has samples that are not finite numbers")
    if waveform.size / rate < min_seconds:
        raise ValueError(f"too short ({waveform.size / rate:.3f} s, the model needs {min_seconds:.3f} s)")
    if np.ptp(waveform) < SILENCE:
        raise ValueError("silent")
    return librosa.resample(waveform, orig_sr=rate, target_sr=sampling_rate).astype(np.float32)


def _decode(source: Union[Path, bytes], start: float, stop: Optional[float]) -> tuple[np.ndarray, float]:
    """Return the mono waveform `(samples,)` from `start` to `stop` seconds at the file's own rate, and that rate."""
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            rate = file.samplerate
            _check_rate(rate)
            part = slice(round(start * rate), None if stop is None else round(min(stop * rate, file.frames)))
            first, last, _ = part.indices(file.frames)
            skipped = file.seek(first) if file.seekable() else 0
            samples = file.read(last - skipped, dtype="float32", always_2d=True)
            return _mono(samples[first - skipped :]), rate
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = str(error).rpartition(": ")[2].strip(" .")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # librosa says that it tries its other decoder
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            duration = None if stop is None else stop - start
            waveform, rate = librosa.load(file, sr=None, mono=True, offset=start, duration=duration)
    except Exception:  # which error it is depends on the decoder librosa finds; the file cannot be used either way
        raise ValueError(f"unreadable ({reason}); if it does play elsewhere, convert it to WAV or FLAC") from None
    _check_rate(rate)
    return waveform, rate


def _check_rate(rate: float) -> None:
    # A wrong header would divide by 0, or make hours of a file of a second.
    low, high = RATES
    if not low <= rate <= high:
        raise ValueError(f"has a sampling rate of {rate:g} Hz in its header, not one from {low} to {high}")


def _mono(samples: np.ndarray) -> np.ndarray:
    """Return the mean of the channels, `(samples, channels)` to `(samples,)`."""
    mean = samples.mean(axis=1)
    if len(mean) and np.ptp(mean) < SILENCE <= np.ptp(samples, axis=0).max():
        raise ValueError("silent in mono, because its channels cancel each other out; invert one, or keep one of them")
    return mean


def load_clip(
    clip: Clip, sampling_rate: int, min_seconds: float = 0.0, max_seconds: Optional[float] = None
) -> np.ndarray:
    """Return the waveform of a clip as `load_waveform` does, cut to `max_seconds`.

    Raises:
        ValueError: where `load_waveform` raises it.
    """
    waveform = load_waveform(clip.source, sampling_rate, min_seconds, clip.start, clip.stop)
    return waveform if max_seconds is None else waveform[: round(max_seconds * sampling_rate)]


def report_bad_files(bad_files: dict[str, str], total: int, skip_bad_files: bool = False) -> None:
    """Log the files that are left out as a warning.

    Args:
        bad_files: the reasons by the files' names.
        total: how many files were read.
        skip_bad_files: whether they may be left out.

    Raises:
        BadAudioError: there are bad files, and they may not be left out.
    """
    if bad_files and not skip_bad_files:
        raise BadAudioError(bad_files, total)
    if bad_files:
        logger.warning("Left out %d of %d audio files:\n%s", len(bad_files), total, _listed(bad_files))


def _listed(bad_files: dict[str, str]) -> str:
    return "\n".join(f"  {name}: {reason}" for name, reason in bad_files.items())
