"""Augmentation of waveforms and spectrograms, as in the recipes of AST, AAT and IPET.

Arrays (or CPU tensors) in, NumPy arrays out; inputs are never changed. All randomness comes from the generator `rng`.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np
import soundfile

from peft_audio.data import AUDIO_SUFFIXES
from peft_audio.data.crops import cut_or_fill


def fit_length(
    waveform: np.ndarray, num_samples: int, how: str = "cut", rng: np.random.Generator | None = None
) -> np.ndarray:
    """Brings a waveform (samples,), or anything else by its first axis, to at most or exactly `num_samples`.

    Args:
        waveform: of any length but 0.
        how: what becomes of a shorter one. "cut": it stays as it is; "repeat": it is repeated from its start;
            "pad": zeros follow.
        rng: draws which part of a longer one is kept; without it, its front is.

    Raises:
        ValueError: `how` is none of these, the waveform is empty, or `num_samples` is not positive.
    """
    waveform = np.asarray(waveform)
    if how not in ("cut", "repeat", "pad"):
        raise ValueError(f"how must be cut, repeat or pad, got {how!r}.")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
    if len(waveform) == 0:
        raise ValueError("The waveform has no samples: leave such clips out.")
    if rng is not None and len(waveform) > num_samples:
        return random_crop(waveform, num_samples, rng)
    return cut_or_fill(waveform, num_samples, how)


def random_crop(waveform: np.ndarray, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """A part of `num_samples` of a waveform (samples,), all positions equally likely.

    Raises:
        ValueError: the waveform is shorter than that.
    """
    waveform = np.asarray(waveform)
    if not 0 < num_samples <= len(waveform):
        raise ValueError(
            f"A crop of {num_samples} samples does not fit into a waveform of {len(waveform)}: use fit_length, which "
            "repeats or pads short ones."
        )
    start = rng.integers(len(waveform) - num_samples, endpoint=True)
    return waveform[start : start + num_samples]


def mix_waveforms(
    first: np.ndarray, second: np.ndarray, rng: np.random.Generator, alpha: float = 10.0
) -> tuple[np.ndarray, float]:
    """Mixup of two waveforms (samples,), as AST does it (Gong et al., 2021, after Tokozume et al., 2018).

    Both lose their mean, the second is cut or padded with zeros to the length of the first, and the mixture loses its
    mean too.

    Returns:
        weight * first + (1 - weight) * second, and the weight, drawn from Beta(alpha, alpha). `soft_target` mixes the
        targets in the same way.
    """
    first, second = np.asarray(first), np.asarray(second)
    second = fit_length(second - second.mean(), len(first), "pad")
    weight = float(rng.beta(alpha, alpha))
    mixture = weight * (first - first.mean()) + (1 - weight) * second
    return (mixture - mixture.mean()).astype(np.result_type(first, np.float32)), weight


def soft_target(first, second, weight: float, num_labels: int | None = None) -> np.ndarray:
    """weight * first + (1 - weight) * second, float32, shape (labels,): the target of `mix_waveforms`.

    Args:
        first: class index, or vector (labels,) from 0 to 1, NaN where unknown; what is unknown in one is so in the
            mixture.
        second: the same.
        weight: of the first, from 0 to 1.
        num_labels: number of labels, needed with class indices.

    Raises:
        ValueError: an index without `num_labels` or not below it, vectors of different lengths, a weight or a value of a
            vector outside 0..1.
    """
    first, second = _as_vector(first, num_labels), _as_vector(second, num_labels)
    if first.shape != second.shape:
        raise ValueError(f"Targets to mix must be equally long, got {len(first)} and {len(second)} labels.")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must lie between 0 and 1, got {weight}.")
    return (weight * first + (1 - weight) * second).astype(np.float32)


def _as_vector(target, num_labels: int | None) -> np.ndarray:
    target = np.asarray(target)
    if target.ndim:
        if (outside := target[(target < 0) | (target > 1)]).size:
            raise ValueError(f"Targets must lie between 0 and 1, or be NaN where unknown, got {outside[0]:g}.")
        return target
    if num_labels is None or not 0 <= target < num_labels:
        raise ValueError(f"A class index must lie in 0..num_labels - 1, got {target} with num_labels={num_labels}.")
    return (np.arange(num_labels) == target).astype(np.float32)


@dataclass(frozen=True)
class SpecAugment:
    """Masks one band of frames and one of mel bins (Park et al., 2019), drawn as torchaudio's masking transforms do.

    The width is the whole part of a number uniform in [0, mask), so at most mask - 1; the band lies anywhere (but, by
    torchaudio's rounding, never on the last frame or bin).

    Args:
        time_mask: in frames; 0 masks none.
        frequency_mask: in mel bins; 0 masks none.
        value: what is put in. AST's recipe masks with 0 before it normalizes; on normalized spectrograms that is
            -mean / (2 std), see `for_extractor`.
    """

    time_mask: int
    frequency_mask: int
    value: float = 0.0

    def __post_init__(self):
        for name in ("time_mask", "frequency_mask"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}.")

    @classmethod
    def for_extractor(cls, feature_extractor, time_mask: int, frequency_mask: int) -> "SpecAugment":
        """With the value that 0 has in the output of this feature extractor of AST."""
        shift = -feature_extractor.mean / (2 * feature_extractor.std) if feature_extractor.do_normalize else 0.0
        return cls(time_mask, frequency_mask, shift)

    def __call__(self, spectrogram: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The masked copy of a spectrogram (frames, mel bins).

        Raises:
            ValueError: a mask can be wider than the spectrogram.
        """
        masked = np.array(spectrogram)
        frames, bins = masked.shape
        masked[_band("time_mask", self.time_mask, frames, rng)] = self.value
        masked[:, _band("frequency_mask", self.frequency_mask, bins, rng)] = self.value
        return masked


def _band(name: str, mask: int, size: int, rng: np.random.Generator) -> slice:
    if mask > size:
        raise ValueError(f"{name}={mask} is wider than the spectrogram, which has {size} there: take at most {size}.")
    width = rng.uniform(0, mask)
    start = int(rng.uniform(0, size - width))
    return slice(start, start + int(width))


def noise_and_roll(spectrogram: np.ndarray, rng: np.random.Generator, max_roll: int = 10) -> np.ndarray:
    """AST's noise for normalized spectrograms (frames, mel bins): uniform noise, and a roll along time.

    The noise is U(0, 1) in every point, times one U(0, 1) / 10. The roll is by -max_roll to max_roll - 1 frames; what
    leaves at one end comes in at the other.
    """
    spectrogram = np.asarray(spectrogram)
    noise = rng.random(spectrogram.shape) * rng.random() / 10
    return np.roll(spectrogram + noise.astype(spectrogram.dtype), rng.integers(-max_roll, max_roll), axis=0)


@dataclass(frozen=True)
class NoiseKind:
    """How many recordings are added at a time (least, most), and the signal-to-noise ratio of each in dB."""

    recordings: tuple[int, int]
    snr: tuple[float, float]


# The ranges of Kaldi's VoxCeleb recipe, as voxceleb_trainer (Chung et al., 2020) draws from them.
NOISE_KINDS = {
    "noise": NoiseKind((1, 1), (0, 15)),
    "music": NoiseKind((1, 1), (5, 15)),
    "speech": NoiseKind((3, 7), (13, 20)),
}


class MusanNoise:
    """Adds noise, music or babble of several voices from the MUSAN corpus (Snyder et al., 2015).

    Each recording has a signal-to-noise ratio of its own, uniform in its kind's range: of babble, that is the ratio to
    each single voice. Recordings are cut at random, or repeated where they are shorter than the waveform.

    Args:
        folder: holds music/, noise/ and speech/ with audio files at any depth.
        sampling_rate: of the waveforms, in Hz; recordings at another rate are resampled.
        kinds: those to draw from, all equally likely.

    Raises:
        ValueError: a kind is unknown, or its folder is missing or holds no audio file.
    """

    def __init__(self, folder: str | Path, sampling_rate: int = 16000, kinds: tuple[str, ...] = tuple(NOISE_KINDS)):
        self.sampling_rate, self.files = sampling_rate, {}
        for kind in kinds:
            if kind not in NOISE_KINDS:
                raise ValueError(f"kinds: {kind!r} is unknown, choose from {', '.join(NOISE_KINDS)}.")
            found = sorted(path for path in Path(folder, kind).rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
            if not found:
                raise ValueError(
                    f"{Path(folder, kind)}: no audio files. MUSAN is unpacked to the folders music, noise and speech: "
                    "give the folder that holds them, or name in kinds those that are there."
                )
            self.files[kind] = found
        if not self.files:
            raise ValueError(f"kinds is empty, choose from {', '.join(NOISE_KINDS)}.")

    def __call__(self, waveform: np.ndarray, rng: np.random.Generator, kind: str | None = None) -> np.ndarray:
        """The waveform (samples,) with noise of `kind`, a random one if left out. Silence stays silent.

        Raises:
            ValueError: a recording cannot be read, or `kind` is not one of those given at the start.
        """
        waveform = np.asarray(waveform)
        kind = rng.choice(list(self.files)) if kind is None else kind
        if kind not in self.files:
            raise ValueError(f"kind {kind!r} is none of {', '.join(self.files)}.")
        files, settings = self.files[kind], NOISE_KINDS[kind]
        count = rng.integers(*settings.recordings, endpoint=True)
        noisy = waveform.astype(np.float64)
        for index in rng.choice(len(files), size=count, replace=count > len(files)):
            noise = read_segment(files[index], len(waveform), self.sampling_rate, rng).astype(np.float64)
            noisy += noise * gain_for_snr(waveform, noise, rng.uniform(*settings.snr))
        return noisy.astype(np.result_type(waveform, np.float32))


def gain_for_snr(signal: np.ndarray, noise: np.ndarray, snr: float) -> float:
    """The factor on `noise` that puts the power of `signal` `snr` dB above it; 0 for noise that is silent."""
    power = np.mean(np.square(noise, dtype=np.float64))
    wanted = np.mean(np.square(signal, dtype=np.float64)) / 10 ** (snr / 10)
    return float(np.sqrt(wanted / power)) if power > 0 else 0.0


def read_segment(path: Path, num_samples: int, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of a file: mono, float32, shape (num_samples,), at `sampling_rate` Hz. Only that part is decoded.

    Raises:
        ValueError: the file cannot be decoded, or is empty.
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            wanted = math.ceil(num_samples * rate / sampling_rate)
            file.seek(int(rng.integers(max(file.frames - wanted, 0), endpoint=True)))
            segment = file.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: no readable audio ({error.error_string}). Repair or remove it.") from None
    if not segment.size:
        raise ValueError(f"{path}: has no samples. Remove it.")
    if rate != sampling_rate:
        segment = librosa.resample(segment, orig_sr=rate, target_sr=sampling_rate)
    return fit_length(segment, num_samples, "repeat")
