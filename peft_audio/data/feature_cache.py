"""Features on disk: each clip is decoded and run through the feature extractor once, on all cores, and then only read.

    cache = FeatureCache("features", feature_extractor, max_seconds=10)
    features = cache.compute(splits.clips)  # a second run, or one after a crash, computes only what is missing
    features["dog/1.wav"]["input_values"]   # read from disk when asked for

The folder has a subfolder for each set of settings, named after their SHA-256, with `settings.json` to say which they
are. In it is one safetensors file a clip, in 256 subfolders, named after the SHA-256 of the audio file's bytes and of
the part of it that the clip is. So a renamed file is found again, and a changed file or setting makes a new entry.

Each entry has a checksum of its features and its place. It is checked whenever the entry is read: what was damaged, or
is another clip's, is computed again with a warning that names the file. Folders of versions without checksums are not read.

No entry is ever deleted, because other runs may be using it. Subfolders of settings that are no longer used can be
removed by hand.
"""

from __future__ import annotations

import hashlib
import json
import logging
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Optional, Union

import joblib
import librosa
import numpy as np
import torch
from tqdm.auto import tqdm

from .clips import Clip
from .decoding import load_clip, report_bad_files
from .feature_entries import as_stored, entry_path, is_complete, prepare, read_entry, write_entry
from .features import model_inputs
from .torch_features import computed_by, unwrapped


logger = logging.getLogger(__name__)

FORMAT = 2  # of the entries; raised as well when clips are decoded in another way
# The features may change with the versions of these.
PACKAGES = ("librosa", "soundfile", "soxr", "torch", "torchaudio", "transformers")
CLIPS_PER_WORKER = 8  # for fewer, a worker takes longer to start than it saves


class Features(Mapping):
    """Features by clip name, as `extract_features` returns them, read from disk every time.

    Only the names and some 300 bytes for each of them are in memory. An entry that has been damaged or removed since
    `FeatureCache.compute` is computed again, with a warning that names its file.

    Args:
        cache: what computed them.
        folder: of the entries.
        keys: the keys of the entries by clip name.
        clips: those with a file, which can be computed again, by key.
        skipped: the reasons by name of the clips left out.

    Raises:
        KeyError: there is no clip of this name.
        OSError: its entry has been damaged or removed, and cannot be computed again: the audio file has changed, or the
            clip came as bytes, which are not kept.
    """

    def __init__(
        self, cache: FeatureCache, folder: Path, keys: dict[str, str], clips: dict[str, Clip], skipped: dict[str, str]
    ) -> None:
        self.cache = cache
        self.folder = folder
        self.keys_by_name = keys
        self.clips_by_key = clips
        self.skipped = skipped

    def path(self, name: str) -> Path:
        """Return the file with this clip's features."""
        return entry_path(self.folder, self.keys_by_name[name])

    def __getitem__(self, name: str) -> dict[str, np.ndarray]:
        try:
            return read_entry(self.folder, self.keys_by_name[name])
        except OSError as error:
            return self._computed_again(name, error)

    def _computed_again(self, name: str, damage: OSError) -> dict[str, np.ndarray]:
        path, key = self.path(name), self.keys_by_name[name]
        event = f"{path}: the features of {name!r} have been damaged or removed since they were computed ({damage})"
        logger.warning("%s. They are computed again.", event)
        try:
            if key not in self.clips_by_key:
                raise ValueError("the audio came as bytes, which are not kept")
            job = Job.of(self.clips_by_key[key], self.folder)
            if job.key != key:
                raise ValueError("the audio file has changed")
            features = as_stored(job.features(self.cache))
        except (ValueError, OSError) as error:
            raise OSError(f"{event}, and cannot be computed again: {error}. Run FeatureCache.compute.") from None
        try:
            write_entry(self.folder, key, features)
        except OSError as error:  # no reason to stop
            logger.warning("%s: the features of %r could not be written again: %s", path, name, error)
        return features

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
        missing = missing_jobs(list(jobs.values()))
        reasons = self._fill(folder, settings, missing) if missing else {}
        skipped = {clip.name: reasons[keys[clip.name]] for clip in clips if keys[clip.name] in reasons}
        report_bad_files(skipped, len(clips), skip_bad_files)
        kept = {name: key for name, key in keys.items() if name not in skipped}
        with_file = {keys[clip.name]: clip for clip in clips if isinstance(clip.source, Path)}
        return Features(self, folder, kept, with_file, skipped)

    def settings(self) -> str:
        """Return all that the features depend on besides the audio, as JSON."""
        extractor = unwrapped(self.feature_extractor)
        settings = {
            "format": FORMAT,
            "sampling_rate": self.sampling_rate,
            "min_seconds": self.min_seconds,
            "max_seconds": self.max_seconds,
            "resampling": "soxr_hq",  # librosa's default
            "versions": {name: version(name) for name in PACKAGES},
            "class": None if extractor is None else f"{type(extractor).__module__}.{type(extractor).__qualname__}",
            "feature_extractor": None if extractor is None else extractor.to_dict(),
            "computed_by": None if extractor is None else computed_by(self.feature_extractor),
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

    @classmethod
    def of(cls, clip: Clip, folder: Path) -> Job:
        """Return the job for a clip as its file is now."""
        file = hash_file(clip.source)
        return cls(clip, folder, entry_key(clip, file), file.state)

    def features(self, cache: FeatureCache) -> dict[str, np.ndarray]:
        """Return the features of the clip.

        Raises:
            ValueError: the audio is bad, or has changed since it was hashed.
            OSError: the file cannot be read.
            RuntimeError: the feature extractor failed. Names the clip.
        """
        waveform = load_clip(self.clip, cache.sampling_rate, cache.min_seconds, cache.max_seconds)
        if file_state(self.clip.source) != self.state:
            raise ValueError("changed while it was being read; run this again")
        try:
            extractor = cache.feature_extractor
            return {"waveform": waveform} if extractor is None else model_inputs(waveform, extractor)
        except Exception:  # whatever it is, the error names the clip
            raise RuntimeError(f"{self.clip.name}: no features could be made.\n{traceback.format_exc()}") from None


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
        job = self.jobs[index]
        if is_complete(job.folder, job.key):  # another run was faster
            return job.key, None
        try:
            features = job.features(self.cache)
        except (ValueError, OSError) as error:
            return job.key, str(error)
        except RuntimeError as error:
            return job.key, error
        try:
            write_entry(job.folder, job.key, features)
        except OSError as error:
            return job.key, error
        return job.key, None


def missing_jobs(jobs: list[Job]) -> list[Job]:
    """Return the jobs whose entries are not there, or are damaged, with a warning that lists these."""
    missing, damaged = [], []
    for job in tqdm(jobs, desc="Checking features", unit="clip", leave=False):
        try:
            read_entry(job.folder, job.key)
        except OSError as error:
            missing.append(job)
            if not isinstance(error, FileNotFoundError):
                damaged.append(f"{entry_path(job.folder, job.key)}: {error}")
    if damaged:
        logger.warning(
            "The features in %d of %d files are damaged and are computed again:\n  %s",
            len(damaged),
            len(jobs),
            "\n  ".join(damaged),
        )
    return missing


def hash_files(sources: Iterable[Union[Path, bytes]]) -> dict[Union[Path, bytes], HashedFile]:
    """Return the hashes of the sources. What cannot be read gets a hash that no entry has: decoding it says why."""
    hashed = {}
    for source in tqdm(dict.fromkeys(sources), desc="Hashing audio files", unit="file", leave=False):
        try:
            hashed[source] = hash_file(source)
        except OSError:
            hashed[source] = HashedFile(f"unreadable: {source!r}", None)
    return hashed


def hash_file(source: Union[Path, bytes]) -> HashedFile:
    """Return the hash of a source, and the state that it had before."""
    state = file_state(source)  # before the hash, so that no change after it is missed
    return HashedFile(sha256(source), state)


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
