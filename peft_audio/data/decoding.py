"""Decodes audio files with soundfile and librosa, without torchcodec or FFmpeg; what cannot be used is named."""

from __future__ import annotations

import collections
import io
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Optional, Union

import librosa
import numpy as np
import soundfile

from .clips import Clip


logger = logging.getLogger(__name__)

SILENCE = 1e-4  # peak-to-peak, of a full scale of 2: some three steps of 16-bit audio, so dither counts as silence
RATES = (1_000, 1_000_000)  # Hz: wider than what is recorded
FILTER_SECONDS = 0.1  # a sample of the result takes nothing from further away, at any of these rates
BLOCK = 1 << 22  # samples of all channels that are decoded at once


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
    source: Union[str, os.PathLike, bytes],
    sampling_rate: int,
    min_seconds: float = 0.0,
    start: float = 0.0,
    stop: Optional[float] = None,
    max_seconds: Optional[float] = None,
) -> np.ndarray:
    """Decode one file to mono, and no more of it than is asked for.

    Args:
        source: the file, or its bytes.
        sampling_rate: of the result, in Hz.
        min_seconds: a shorter sound cannot be used.
        start: decode from here, in seconds. The other checks are about the decoded part alone.
        stop: decode to here, in seconds; None for the end of the file, and so is what lies behind it.
        max_seconds: cut a longer sound to this length.

    Returns:
        The waveform `(samples,)`, float32, full scale +-1.

    Raises:
        ValueError: the file is missing, undecodable, empty, silent, not finite, shorter than `min_seconds`, or of a
            sampling rate that no sound has; or not 0 <= start < stop, or not 0 < max_seconds.
    """
    _check_part(start, stop, max_seconds)
    source = source if isinstance(source, bytes) else Path(source)
    waveform, rate = _decode(source, start, _needed(start, stop, min_seconds, max_seconds))
    seconds = waveform.size / rate
    if seconds == 0:
        raise ValueError(f"empty (no samples{f' from {start:g} s on' if start else ''})")
    if not np.isfinite(waveform).all():
        raise ValueError("has samples that are not finite numbers")
    if seconds < min_seconds:
        raise ValueError(f"too short ({seconds:.3f} s, the model needs {min_seconds:.3f} s)")
    if np.ptp(waveform) < SILENCE:
        is_cut = max_seconds is not None and max_seconds < seconds
        raise ValueError(f"silent in its first {max_seconds:g} s (max_seconds)" if is_cut else "silent")
    waveform = librosa.resample(waveform, orig_sr=rate, target_sr=sampling_rate).astype(np.float32)
    return waveform if max_seconds is None else waveform[: round(min(max_seconds * sampling_rate, waveform.size))]


def _check_part(start: float, stop: Optional[float], max_seconds: Optional[float]) -> None:
    if not (0 <= start < np.inf and (stop is None or start < stop)):
        raise ValueError(f"start and stop must be 0 <= start < stop (seconds), got {start} and {stop}")
    check_seconds(max_seconds)


def check_seconds(max_seconds: Optional[float]) -> None:
    """Check the length to which longer clips are cut.

    Raises:
        ValueError: it is neither None nor a number above 0.
    """
    if max_seconds is not None and not 0 < max_seconds < np.inf:
        raise ValueError(f"max_seconds must be a number above 0, or None, got {max_seconds}.")


def _check_file(source: Union[Path, bytes]) -> None:
    try:
        if isinstance(source, Path) and not source.is_file():
            raise ValueError("no such file")
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
    except OSError as error:  # a name that no file can have, or a folder that may not be read
        raise ValueError(f"cannot be read ({error.strerror})") from None
    if size == 0:
        raise ValueError("empty (0 bytes)")


def _needed(start: float, stop: Optional[float], min_seconds: float, max_seconds: Optional[float]) -> Optional[float]:
    """Return where decoding may end, in seconds, for a result as if all had been decoded."""
    if max_seconds is None:
        return stop
    end = start + max(max_seconds, min_seconds) + FILTER_SECONDS
    return end if stop is None else min(stop, end)


def _decode(source: Union[Path, bytes], start: float, stop: Optional[float]) -> tuple[np.ndarray, float]:
    """Return the mono waveform `(samples,)` from `start` to `stop` seconds at the file's own rate, and that rate."""
    _check_file(source)
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            rate = file.samplerate
            _check_rate(rate)
            part = slice(round(start * rate), None if stop is None else round(min(stop * rate, file.frames)))
            first, last, _ = part.indices(file.frames)
            if file.seekable():
                file.seek(first)
            else:
                collections.deque(_blocks(file, first), maxlen=0)  # read and forgotten
            return _mono(_blocks(file, last - first)), rate
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = str(error).rpartition(": ")[2].strip(" .")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # librosa says that it tries its other decoder
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            duration = None if stop is None else stop - start
            channels, rate = librosa.load(file, sr=None, mono=False, offset=start, duration=duration)
    except Exception:  # which error it is depends on the decoder librosa finds; the file cannot be used either way
        raise ValueError(f"unreadable ({reason}); if it does play elsewhere, convert it to WAV or FLAC") from None
    _check_rate(rate)
    return _mono([np.atleast_2d(channels).T]), rate


def _check_rate(rate: float) -> None:
    # A wrong header would divide by 0, or make hours of a file of a second.
    low, high = RATES
    if not low <= rate <= high:
        raise ValueError(f"has a sampling rate of {rate:g} Hz in its header, not one from {low} to {high}")


def _blocks(file: soundfile.SoundFile, frames: int) -> Iterator[np.ndarray]:
    """Yield the next `frames` frames or what there is of them, `(samples, channels)`, in blocks.

    A header may promise more than the memory holds, of a file of some bytes.
    """
    size = max(1, BLOCK // file.channels)
    while frames > 0 and len(block := file.read(min(frames, size), dtype="float32", always_2d=True)):
        frames -= len(block)
        yield block


def _mono(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Return the mean of the channels, of blocks `(samples, channels)` one `(samples,)`."""
    means, lows, highs = [np.zeros(0, np.float32)], [], []
    for block in blocks:
        means.append(block.mean(axis=1))
        lows.append(block.min(axis=0, initial=np.inf))
        highs.append(block.max(axis=0, initial=-np.inf))
    mean = np.concatenate(means)
    if mean.size and np.ptp(mean) < SILENCE <= (np.max(highs, axis=0) - np.min(lows, axis=0)).max():
        raise ValueError("silent in mono, because its channels cancel each other out; invert one, or keep one of them")
    return mean


def load_clip(
    clip: Clip, sampling_rate: int, min_seconds: float = 0.0, max_seconds: Optional[float] = None
) -> np.ndarray:
    """Return the waveform of a clip as `load_waveform` does, cut to `max_seconds`.

    Raises:
        ValueError: where `load_waveform` raises it.
    """
    return load_waveform(clip.source, sampling_rate, min_seconds, clip.start, clip.stop, max_seconds)


def clip_seconds(clip: Clip) -> Optional[float]:
    """Return the length of a clip in seconds as the file's header tells it; None where none does.

    Args:
        clip: the clip.
    """
    try:
        whole = soundfile.info(io.BytesIO(clip.source) if isinstance(clip.source, bytes) else clip.source).duration
    except (soundfile.LibsndfileError, RuntimeError, OSError):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # librosa says that it tries its other decoder
                whole = librosa.get_duration(path=clip.source) if isinstance(clip.source, Path) else None
        except Exception:  # whatever its decoders raise; decoding itself names what is wrong with the file
            return None
    if whole is None:
        return None
    return (whole if clip.stop is None else min(whole, clip.stop)) - clip.start


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
