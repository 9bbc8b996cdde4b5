"""From audio files to optimizer steps: clips a second of each part, of the whole, and which part holds it up."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import ASTFeatureExtractor, SeamlessM4TFeatureExtractor, WhisperFeatureExtractor

from benchmarking.measure import Precision, time_each, training_step
from benchmarking.subjects import AST_1024, IPET, SUBJECTS
from benchmarking.targets import Outcome
from peft_audio.data import AudioCollator, Clip, FeatureCache, FeatureDataset, TorchFeatures, load_clip


RATE = 16000
SECONDS = 10
SIZES = {"cpu": (8, 2), "cuda": (256, 32)}  # clips, and how many of them in a batch
WORKERS = (1, 2)
DECODING, FEATURES, READING, STEP = "decoding", "features", "reading cached features", "step"  # parts
EXTRACTORS = (ASTFeatureExtractor, SeamlessM4TFeatureExtractor, WhisperFeatureExtractor)


@dataclass(frozen=True)
class Waveforms(Dataset):
    """Clips that are decoded when they are asked for."""

    clips: list[Clip]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"waveform": load_clip(self.clips[index], RATE), "labels": np.int64(0)}


def pipeline(precision: Precision, repeats: int) -> Iterator[Outcome]:
    """Features, and training of IPET on an AST from files on disk; decoding and features on one core."""
    number, batch_size = SIZES.get(precision.device.type, SIZES["cpu"])
    with TemporaryDirectory() as folder:
        clips = write_clips(Path(folder) / "clips", number)
        yield from features(clips[0], repeats, precision)
        yield from training(clips, batch_size, Path(folder) / "cache", repeats, precision)


def write_clips(folder: Path, number: int) -> list[Clip]:
    """Files of noise, 16-bit WAV at the rate of the models."""
    folder.mkdir()
    random = np.random.default_rng(0)
    clips = [Clip(str(index), folder / f"{index}.wav", ("a",)) for index in range(number)]
    for clip in clips:
        soundfile.write(clip.source, random.uniform(-0.3, 0.3, round(SECONDS * RATE)), RATE, subtype="PCM_16")
    return clips


def features(clip: Clip, repeats: int, precision: Precision) -> Iterator[Outcome]:
    """How many times as fast features of one clip are as the extractors' own, and as torchaudio's."""
    waveform = load_clip(clip, RATE)
    for kind in EXTRACTORS:
        seconds = time_each(ways(kind(), waveform), repeats, precision)
        is_first = kind is EXTRACTORS[0]
        name = f"{kind.__name__}: features of a {SECONDS} s clip on one core, seconds"
        ratio = seconds["extractor"] / seconds["torch"]
        yield Outcome(f"{name}, extractor / TorchFeatures", ratio, 20 if is_first else None, at_least=True)
        if is_first and "torchaudio" in seconds:
            ratio = seconds["torchaudio"] / seconds["torch"]
            yield Outcome(f"{name}, torchaudio's kaldi.fbank / TorchFeatures", ratio, 1, at_least=True)


def ways(extractor: Any, waveform: np.ndarray) -> dict[str, Callable[[], None]]:
    """Ways to make features of a clip, by name: torchaudio's where it can be imported."""
    call = {"sampling_rate": RATE, "return_tensors": "pt"}
    found = {
        "extractor": on_one_core(lambda: extractor(waveform, **call)),
        "torch": on_one_core(lambda: TorchFeatures(extractor)(waveform, **call)),
    }
    fbank = torchaudio_fbank()
    if fbank is not None:
        samples, bins = torch.from_numpy(waveform)[None], getattr(extractor, "num_mel_bins", 80)
        options = {"sample_frequency": RATE, "window_type": "hanning", "num_mel_bins": bins}
        found["torchaudio"] = on_one_core(lambda: fbank(samples, **options))
    return found


def torchaudio_fbank() -> Callable[..., torch.Tensor] | None:
    """torchaudio's filter banks, where it can be imported."""
    try:
        return importlib.import_module("torchaudio.compliance.kaldi").fbank
    except (ImportError, OSError):
        return None


def on_one_core(function: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            function()
        finally:
            torch.set_num_threads(threads)

    return run


def training(clips: list[Clip], batch_size: int, cache: Path, repeats: int, precision: Precision) -> Iterator[Outcome]:
    """Clips a second of each part by itself, then of whole epochs with the part that holds them up."""
    extractor = ASTFeatureExtractor()
    collate = AudioCollator(extractor)
    stored = FeatureDataset(clips, FeatureCache(cache, extractor, num_workers=0).compute(clips), ["a"])
    train = trainer(SUBJECTS[IPET](AST_1024.make_model()).to(precision.device).train(), precision)
    decoded = [Waveforms(clips)[index] for index in range(batch_size)]
    batch = collate(decoded)
    parts = {
        DECODING: on_one_core(lambda: [load_clip(clip, RATE) for clip in clips[:batch_size]]),
        FEATURES: on_one_core(lambda: collate(decoded)),
        READING: on_one_core(lambda: collate([stored[index] for index in range(batch_size)])),
        STEP: lambda: train(batch),
    }
    seconds = {name: value / batch_size for name, value in time_each(parts, repeats, precision).items()}
    for name, value in seconds.items():
        yield Outcome(f"AST-base, {SECONDS} s clips: {name}", 1 / value, None, unit="clips/s")
    runs = [(f"{count} worker{'s' * (count > 1)}", Waveforms(clips), count, [DECODING, FEATURES]) for count in WORKERS]
    for name, data, workers, needs in [*runs, ("cached features", stored, 0, [READING])]:
        epoch = epoch_of(data, batch_size, workers, collate, train)
        whole = time_each({name: epoch}, repeats, precision)[name]
        title = f"AST-base, {SECONDS} s clips: from files to steps, {name} (bottleneck: {slowest(seconds, needs, workers)})"
        yield Outcome(title, len(clips) / whole, None, unit="clips/s")


def epoch_of(
    data: Dataset, batch_size: int, workers: int, collate: AudioCollator, train: Callable[[dict], None]
) -> Callable[[], None]:
    """An epoch; the workers start in the first and stay."""
    options = {"num_workers": workers, "persistent_workers": workers > 0, "collate_fn": collate}
    loader = DataLoader(data, batch_size, **options)

    def epoch() -> None:
        for batch in loader:
            train(batch)

    return epoch


def slowest(seconds: dict[str, float], needs: list[str], workers: int) -> str:
    """The part that the others wait for: the step, or the one that keeps the workers longest if they are slower."""
    if sum(seconds[need] for need in needs) / max(workers, 1) <= seconds[STEP]:
        return STEP
    return max(needs, key=seconds.get)


def trainer(model: torch.nn.Module, precision: Precision) -> Callable[[dict[str, torch.Tensor]], None]:
    """A function that takes a step on a batch."""
    batch: dict[str, torch.Tensor] = {}
    step = training_step(model, batch, precision)

    def train(other: dict[str, torch.Tensor]) -> None:
        batch.update({name: value.to(precision.device) for name, value in other.items()})
        step()

    return train
