"""Features on disk: each clip is decoded and run through the feature extractor once, on all cores, and then only read.

    cache = FeatureCache("features", feature_extractor, max_seconds=10)
    features = cache.compute(splits.clips)  # a second run, or one after a crash, computes only what is missing
    features["dog/1.wav"]["input_values"]   # read from disk when asked for

The folder has a subfolder for each set of settings, named after their SHA-256, with `settings.json` to say which they
are. In it is one safetensors file a clip, in 256 subfolders, named after the SHA-256 of the audio file's bytes and of
the part of it that the clip is. So a renamed file is found again, and a changed file or setting makes a new entry.

No entry is ever deleted, because other runs may be using it. Subfolders of settings that are no longer used can be
removed by hand.
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Optional, Union

import joblib
import librosa
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save
from tqdm.auto import tqdm

from .clips import Clip
from .decoding import load_clip, report_bad_files
from .features import model_inputs


FORMAT = 1  # of the entries; raised as well when clips are decoded in another way
# The features may change with the versions of these.
PACKAGES = ("librosa", "soundfile", "soxr", "torchaudio", "transformers")
CLIPS_PER_WORKER = 8  # for fewer, a worker takes longer to start than it saves
STALE_SECONDS = 3600  # no entry takes that long to write: what is older was left behind by a run that was killed


class Features(Mapping):
    """Features by clip name, as `extract_features` returns them, read from disk every time.

    Only the names and some 200 bytes for each of them are in memory.

    Args:
        folder: of the entries.
        keys: the keys of the entries by clip name.
        skipped: the reasons by name of the clips left out.

    Raises:
        KeyError: there is no clip of this name.
        OSError: its entry has been damaged or removed since `FeatureCache.compute`.
    """

    def __init__(self, folder: Path, keys: dict[str, str], skipped: dict[str, str]) -> None:
        self.folder = folder
        self.keys_by_name = keys
        self.skipped = skipped

    def path(self, name: str) -> Path:
        """Return the file with this clip's features."""
        return entry_path(self.folder, self.keys_by_name[name])

    def __getitem__(self, name: str) -> dict[str, np.ndarray]:
        path = self.path(name)
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"{path}: the features of {name!r} have been damaged or removed since they were computed ({error}). "
                "FeatureCache.compute computes them again."
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self.keys_by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys_by_name)

    def __len__(self) -> int:
        return len(self.keys_by_name)


class FeatureCache:
    """Computes features in parallel, and keeps them in a folder that any number of runs may use at the same time.

    Args:
        folder: made if it is missing.
        feature_extractor: one of transformers, or anything with its `sampling_rate`, `to_dict` and call. Its class, its
            `to_dict()` and the versions of the packages tell its features apart from those of others, so give a class
            of your own a number in `to_dict()` that changes with its code. None: waveforms `(samples,)`, float32, under
            the name "waveform".
        sampling_rate: of these waveforms in Hz (16000 by default); the feature extractor's own if there is one.
        max_seconds: longer clips are cut to this length.
        min_seconds: clips below this length are bad.
        num_workers: processes that compute, as for a DataLoader: 0 means this one. None: one a core, for few clips 0.
            Where Python spawns processes (not on Linux before 3.14), a script then needs `if __name__ == "__main__":`.

    Raises:
        ValueError: `sampling_rate` is not the feature extractor's, or `max_seconds` is 0 or below `min_seconds`.
    """

    def __init__(
        self,
        folder: Union[str, Path],
        feature_extractor: Any = None,
        *,
        sampling_rate: Optional[int] = None,
        max_seconds: Optional[float] = None,
        min_seconds: float = 0.0,
        num_workers: Optional[int] = None,
    ) -> None:
        own_rate = getattr(feature_extractor, "sampling_rate", None)
        if sampling_rate is not None and own_rate not in (None, sampling_rate):
            raise ValueError(
                f"sampling_rate must be the feature extractor's, {own_rate} Hz, or left out, got {sampling_rate}."
            )
        if max_seconds is not None and not (max_seconds > 0 and max_seconds >= min_seconds):
            raise ValueError(
                f"max_seconds must be above 0 and not below min_seconds ({min_seconds}), got {max_seconds}."
            )
        self.folder = Path(folder)
        self.feature_extractor = feature_extractor
        self.sampling_rate = own_rate or sampling_rate or 16000
        self.max_seconds = None if max_seconds is None else float(max_seconds)
        self.min_seconds = float(min_seconds)
        self.num_workers = num_workers

    def compute(self, clips: list[Clip], skip_bad_files: bool = False) -> Features:
        """Return the features of these clips; those that are missing in the folder, or damaged, are computed.

        Args:
            clips: the clips.
            skip_bad_files: leave files out that cannot be used, with a warning that lists them.

        Raises:
            BadAudioError: some files cannot be used, and `skip_bad_files` is False. Lists all of them; the features of
                the others are in the folder.
            OSError: the folder cannot be written to, e.g. because the disk is full. What it holds can still be used.
            RuntimeError: the feature extractor failed. Names the clip.
        """
        settings = self.settings()
        folder = self.folder / sha256(settings.encode())[:32]
        files = hash_files(clip.source for clip in clips)
        keys = {clip.name: entry_key(clip, files[clip.source]) for clip in clips}
        jobs = {keys[clip.name]: Job(clip, folder, keys[clip.name], files[clip.source].state) for clip in clips}
        missing = [job for job in jobs.values() if not is_complete(job.path)]
        reasons = self._fill(folder, settings, missing) if missing else {}
        skipped = {clip.name: reasons[keys[clip.name]] for clip in clips if keys[clip.name] in reasons}
        report_bad_files(skipped, len(clips), skip_bad_files)
        return Features(folder, {name: key for name, key in keys.items() if name not in skipped}, skipped)

    def settings(self) -> str:
        """Return all that the features depend on besides the audio, as JSON."""
        extractor = self.feature_extractor
        settings = {
            "format": FORMAT,
            "sampling_rate": self.sampling_rate,
            "min_seconds": self.min_seconds,
            "max_seconds": self.max_seconds,
            "resampling": "soxr_hq",  # librosa's default
            "versions": {name: version(name) for name in PACKAGES},
            "class": None if extractor is None else f"{type(extractor).__module__}.{type(extractor).__qualname__}",
            "feature_extractor": None if extractor is None else extractor.to_dict(),
        }
        return json.dumps(settings, indent=2, sort_keys=True, default=as_list)

    def _fill(self, folder: Path, settings: str, jobs: list[Job]) -> dict[str, str]:
        """Compute and write the entries of `jobs`. Returns why some could not be made, by key."""
        try:
            prepare(folder, settings)
        except OSError as error:
            raise self._cannot_write(error) from error
        # librosa imports and compiles at its first use: once here, or in every worker.
        librosa.resample(np.zeros(2, np.float32), orig_sr=1, target_sr=1)
        # Processes and not threads: extractors of spectrograms hold the interpreter's lock nearly all the time.
        loader = torch.utils.data.DataLoader(
            Computation(self, jobs),
            batch_size=None,
            collate_fn=tuple,
            num_workers=self._count_workers(len(jobs)),
            in_order=False,
            generator=torch.Generator(),  # else the loader draws from the one that training draws from
        )
        reasons, failure = {}, None
        outcomes = iter(loader)  # tqdm would make a second iterator, with as many workers again
        for key, outcome in tqdm(outcomes, "Computing features", len(jobs), unit="clip", leave=False):
            if isinstance(outcome, Exception):
                failure = outcome
                break
            if outcome is not None:
                reasons[key] = outcome
        del outcomes  # which ends the workers
        if failure is not None:
            raise self._cannot_write(failure) if isinstance(failure, OSError) else failure
        return reasons

    def _cannot_write(self, error: OSError) -> OSError:
        advice = (
            "The features that are complete stay, and the next run adds the others. Free space or name another folder"
        )
        return OSError(error.errno, f"Cannot write features: {error.strerror or error}. {advice}", str(self.folder))

    def _count_workers(self, jobs: int) -> int:
        if self.num_workers is not None:
            return min(self.num_workers, jobs)
        workers = min(joblib.cpu_count(), jobs // CLIPS_PER_WORKER)
        return workers if workers > 1 else 0


@dataclass(frozen=True)
class HashedFile:
    """SHA-256 of a file's bytes, and its size and time of change then; bytes in memory have no such state."""

    digest: str
    state: Optional[tuple[int, int]]


@dataclass(frozen=True)
class Job:
    """An entry to be made: that of `clip`, whose file had this `state` when it was hashed; `key` is its name."""

    clip: Clip
    folder: Path
    key: str
    state: Optional[tuple[int, int]]

    @property
    def path(self) -> Path:
        """The entry's file."""
        return entry_path(self.folder, self.key)


@dataclass(frozen=True)
class Computation(torch.utils.data.Dataset):
    """Makes the entry of a job when the item is read, in whichever process that is.

    An item is the job's key, and None or what went wrong: text if the audio is bad, `OSError` if the disk failed,
    `RuntimeError` if the feature extractor did. Errors are returned, because to raise them would leave the workers
    waiting for as long as someone keeps the traceback.
    """

    cache: FeatureCache
    jobs: list[Job]

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> tuple[str, Union[str, Exception, None]]:
        job, cache = self.jobs[index], self.cache
        if is_complete(job.path):  # another run was faster
            return job.key, None
        try:
            waveform = load_clip(job.clip, cache.sampling_rate, cache.min_seconds, cache.max_seconds)
            if file_state(job.clip.source) != job.state:
                raise ValueError("changed while it was being read; run this again")
        except (ValueError, OSError) as error:
            return job.key, str(error)
        try:
            content = encode(waveform, cache.feature_extractor)
        except Exception:  # whatever it is, the error names the clip
            return job.key, RuntimeError(f"{job.clip.name}: no features could be made.\n{traceback.format_exc()}")
        try:
            job.path.parent.mkdir(exist_ok=True)
            write_atomically(job.path, content, partial_folder(job.folder))
        except OSError as error:
            return job.key, error
        return job.key, None


def hash_files(sources: Iterable[Union[Path, bytes]]) -> dict[Union[Path, bytes], HashedFile]:
    """Return the hashes of the sources. What cannot be read gets a hash that no entry has: decoding it says why."""
    hashed = {}
    for source in tqdm(dict.fromkeys(sources), desc="Hashing audio files", unit="file", leave=False):
        try:
            state = file_state(source)  # before the hash, so that no change after it is missed
            hashed[source] = HashedFile(sha256(source), state)
        except OSError:
            hashed[source] = HashedFile(f"unreadable: {source!r}", None)
    return hashed


def sha256(source: Union[Path, bytes]) -> str:
    """Return the SHA-256 of bytes, or of a file's bytes, as hexadecimal digits."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_state(source: Union[Path, bytes]) -> Optional[tuple[int, int]]:
    """Return a file's size and time of change."""
    if isinstance(source, bytes):
        return None
    status = source.stat()
    return status.st_size, status.st_mtime_ns


def entry_key(clip: Clip, file: HashedFile) -> str:
    """Return the name of the clip's entry; clips with the same audio have the same."""
    stop = None if clip.stop is None else float(clip.stop)
    return sha256(f"{file.digest} {float(clip.start)} {stop}".encode())


def entry_path(folder: Path, key: str) -> Path:
    """Return the file of an entry."""
    return folder / key[:2] / f"{key}.safetensors"


def partial_folder(folder: Path) -> Path:
    """Return the folder of incomplete entries; on the same file system, because moving is atomic only there."""
    return folder / "partial"


def prepare(folder: Path, settings: str) -> None:
    """Make the folder for entries with these settings, and remove what killed runs have left in it."""
    partial_folder(folder).mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "settings.json", settings.encode() + b"\n", partial_folder(folder))
    for path in partial_folder(folder).iterdir():
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
        except FileNotFoundError:  # another run was faster
            pass


def encode(waveform: np.ndarray, feature_extractor: Any) -> bytes:
    """Return the content of an entry."""
    features = {"waveform": waveform} if feature_extractor is None else model_inputs(waveform, feature_extractor)
    # safetensors writes the memory of arrays that are not contiguous as if they were.
    return save({name: np.asarray(value, order="C") for name, value in features.items()})


def write_atomically(path: Path, content: bytes, partial: Path) -> None:
    """Write a file in the folder `partial` and move it to `path`, so that `path` never holds a part of it."""
    temporary = partial / uuid.uuid4().hex
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_complete(path: Path) -> bool:
    """Return whether there is an entry whose header can be read and fits the length of the file."""
    try:
        with safe_open(path, framework="np"):
            return True
    except (OSError, SafetensorError):
        return False


def version(package: str) -> Optional[str]:
    """Return the version of a package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def as_list(value: Any) -> Any:
    """Turn an array among the settings of a feature extractor into a list, for JSON."""
    if not hasattr(value, "tolist"):
        raise TypeError(
            f"The feature extractor's to_dict() has a value of type {type(value).__name__}, which has no JSON, so its "
            "features could not be found again. Turn it into numbers, text, lists or arrays there."
        )
    return value.tolist()
