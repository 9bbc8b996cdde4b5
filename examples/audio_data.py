"""Audio clips as model inputs: decodes the files, and runs the model's feature extractor over each of them once.

Which files there are, and what trains and tests, is read by `clip_table`.
"""

import io
import logging
import warnings
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch
from clip_table import Clip
from tqdm.auto import tqdm


logger = logging.getLogger(__name__)

SILENCE = 1e-4  # peak-to-peak, of a full scale of 2: some three steps of 16-bit audio, so dither counts as silence
MEL_WINDOW_SECONDS, MEL_HOP_SECONDS = 0.025, 0.010  # fixed in the spectrogram extractors of transformers


class BadAudioError(ValueError):
    """Some audio files cannot be used. `bad_files` maps each file's name to the reason."""

    def __init__(self, bad_files: dict[str, str], total: int):
        self.bad_files = bad_files
        super().__init__(
            f"{len(bad_files)} of {total} audio files cannot be used:\n{list_bad_files(bad_files)}\n"
            "Repair or remove them, or pass --skip_bad_files to leave them out."
        )


def load_waveform(
    source: Path | bytes, sampling_rate: int, min_seconds: float = 0.0, start: float = 0.0, stop: float | None = None
) -> np.ndarray:
    """Decodes one file to mono at `sampling_rate` Hz: float32, shape (samples,), full scale +-1.

    `start` and `stop` are seconds: only that part is decoded, and all else here is about that part. It ends with the
    file where `stop` is None or lies behind its end.

    Raises:
        ValueError: the file is missing, undecodable, empty, silent, not finite, or shorter than `min_seconds`; or
            not 0 <= start < stop.
    """
    if not (0 <= start < np.inf and (stop is None or start < stop)):
        raise ValueError(f"start and stop must be 0 <= start < stop (seconds), got {start} and {stop}")
    if isinstance(source, Path) and not source.is_file():
        raise ValueError("no such file")
    if (len(source) if isinstance(source, bytes) else source.stat().st_size) == 0:
        raise ValueError("empty (0 bytes)")
    waveform, rate = decode(source, start, stop)
    if waveform.size == 0:
        raise ValueError(f"empty (no samples{f' from {start:g} s on' if start else ''})")
    if not np.isfinite(waveform).all():
        raise ValueError("has samples that are not finite numbers")
    if waveform.size / rate < min_seconds:
        raise ValueError(f"too short ({waveform.size / rate:.3f} s, the model needs {min_seconds:.3f} s)")
    if np.ptp(waveform) < SILENCE:
        raise ValueError("silent")
    return librosa.resample(waveform, orig_sr=rate, target_sr=sampling_rate).astype(np.float32)


def decode(source: Path | bytes, start: float = 0.0, stop: float | None = None) -> tuple[np.ndarray, int]:
    """Samples (float32, mono, shape (samples,)) from `start` to `stop` seconds at the file's own rate, and that rate."""
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            rate = file.samplerate
            part = slice(round(start * rate), None if stop is None else round(min(stop * rate, file.frames)))
            first, last, _ = part.indices(file.frames)
            skipped = file.seek(first) if file.seekable() else 0
            samples = file.read(last - skipped, dtype="float32", always_2d=True)
            return samples[first - skipped :].mean(axis=1), rate
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = str(error).rpartition(": ")[2].strip(" .")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # librosa announces that it tries its other decoder
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            duration = None if stop is None else stop - start
            return librosa.load(file, sr=None, mono=True, offset=start, duration=duration)
    except Exception:  # which error it is depends on the decoder librosa finds; the file cannot be used either way
        raise ValueError(f"unreadable ({reason}); if it does play elsewhere, convert it to WAV or FLAC") from None


def load_clip(
    clip: Clip, sampling_rate: int, min_seconds: float = 0.0, max_seconds: float | None = None
) -> np.ndarray:
    """The waveform of a clip as `load_waveform` returns it, cut to `max_seconds`. Raises `ValueError` as that does."""
    waveform = load_waveform(clip.source, sampling_rate, min_seconds, clip.start, clip.stop)
    return waveform if max_seconds is None else waveform[: round(max_seconds * sampling_rate)]


def model_inputs(waveform: np.ndarray, feature_extractor) -> dict[str, np.ndarray]:
    """The feature extractor's outputs for one waveform at its sampling rate, without the batch axis."""
    outputs = feature_extractor(waveform, sampling_rate=feature_extractor.sampling_rate, return_tensors="np")
    return {name: np.asarray(value)[0] for name, value in outputs.items()}


def extract_features(
    clips: list[Clip],
    feature_extractor,
    min_seconds: float = 0.0,
    max_seconds: float | None = None,
    skip_bad_files: bool = False,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, str]]:
    """Decodes every clip and runs the feature extractor over it, once; all epochs then use the result.

    Returns:
        The features by clip name, each as the extractor's outputs without the batch axis, e.g. `input_values` of
        shape (frames, mel bins) for AST or (samples,) for wav2vec2; and the reasons by name of the files left out.

    Raises:
        BadAudioError: some files cannot be used, and `skip_bad_files` is False. Lists all of them.
    """
    features, bad_files = {}, {}
    for clip in tqdm(clips, desc="Computing features", unit="clip", leave=False):
        try:
            waveform = load_clip(clip, feature_extractor.sampling_rate, min_seconds, max_seconds)
        except ValueError as error:
            bad_files[clip.name] = str(error)
            continue
        features[clip.name] = model_inputs(waveform, feature_extractor)
    report_bad_files(bad_files, len(clips), skip_bad_files)
    return features, bad_files


def report_bad_files(bad_files: dict[str, str], total: int, skip_bad_files: bool = False) -> None:
    """Raises `BadAudioError` if there are any; with `skip_bad_files` it logs them as a warning instead."""
    if bad_files and not skip_bad_files:
        raise BadAudioError(bad_files, total)
    if bad_files:
        logger.warning("Left out %d of %d audio files:\n%s", len(bad_files), total, list_bad_files(bad_files))


def minimum_seconds(config, sampling_rate: int) -> float:
    """The shortest clip, in seconds, that a model with this configuration can take in training and evaluation."""
    if hasattr(config, "patch_size"):
        return (config.patch_size - 1) * MEL_HOP_SECONDS + MEL_WINDOW_SECONDS
    masked = getattr(config, "apply_spec_augment", False) and config.mask_time_prob > 0
    # SpecAugment inside these models refuses a batch that is shorter than one of its masks.
    steps = config.mask_time_length if masked else 1
    if hasattr(config, "feature_projection_input_dim"):  # wav2vec2-bert: two frames a step
        return (2 * steps - 1) * MEL_HOP_SECONDS + MEL_WINDOW_SECONDS
    if not hasattr(config, "conv_kernel"):  # Whisper, which pads
        return MEL_WINDOW_SECONDS
    samples = max(steps, getattr(config, "squeeze_factor", 1))
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples / sampling_rate


class FeatureDataset(torch.utils.data.Dataset):
    """Features and labels by index. A label is a class index, or a 0/1 vector of shape (labels,) if `multi_label`."""

    def __init__(self, clips: list[Clip], features: dict, labels: list[str], multi_label: bool = False):
        self.names, self.features = [clip.name for clip in clips], features
        position = {label: index for index, label in enumerate(labels)}
        if multi_label:
            self.targets = np.zeros((len(clips), len(labels)), dtype=np.float32)
            for row, clip in zip(self.targets, clips, strict=True):
                row[[position[label] for label in clip.labels]] = 1
        else:
            self.targets = np.array([position[clip.labels[0]] for clip in clips])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict:
        return {**self.features[self.names[index]], "labels": self.targets[index]}


class AudioCollator:
    """Stacks items of `FeatureDataset`, padded to the longest as the feature extractor does it (with its mask)."""

    def __init__(self, feature_extractor):
        self.feature_extractor = feature_extractor

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        labels = torch.from_numpy(np.stack([item["labels"] for item in items]))
        inputs = [{name: value for name, value in item.items() if name != "labels"} for item in items]
        if len({len(value) for item in inputs for value in item.values()}) == 1:
            batch = {name: torch.from_numpy(np.stack([item[name] for item in inputs])) for name in inputs[0]}
        else:
            batch = self.feature_extractor.pad(inputs, padding="longest", return_tensors="pt")
        return {**batch, "labels": labels}


def list_bad_files(bad_files: dict[str, str]) -> str:
    return "\n".join(f"  {name}: {reason}" for name, reason in bad_files.items())
