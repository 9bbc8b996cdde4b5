"""Trials of speaker verification in VoxCeleb1's layout, and the recordings to train on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Union

from .clips import Clip, ClipTable, DataError


PUBLISHED = "VoxCeleb1 is published as vox1_dev_wav.zip, vox1_test_wav.zip and veri_test.txt by VGG, Oxford."


class Trial(NamedTuple):
    """Two recordings to compare, and whether the same person speaks."""

    is_same: bool
    first: Path
    second: Path


def read_trials(root: Union[str, Path], name: str = "veri_test.txt") -> list[Trial]:
    """Return the trials of a list in VoxCeleb1's folder, from lines such as "1 id10270/x6uYqmx31kE/00001.wav id10270/...".

    Args:
        root: the folder.
        name: of the list in it.

    Raises:
        DataError: a line has another form, or a recording is missing.
    """
    root, files, lines = Path(root), find_utterances(root), trial_lines(root, name)
    trials = [Trial(same, *(files.get(key, root / "wav" / key) for key in pair)) for same, *pair in lines]
    missing = {path for trial in trials for path in (trial.first, trial.second) if not path.is_file()}
    if missing:
        shown = ", ".join(repr(path.relative_to(root).as_posix()) for path in sorted(missing)[:3])
        raise DataError(f"{root}: {len(missing)} audio files are missing (the first: {shown}). {PUBLISHED}")
    return trials


def find_utterances(root: Union[str, Path]) -> dict[str, Path]:
    """Return the file of each utterance, by its name in the lists: "<speaker>/<video>/<utterance>.wav".

    Args:
        root: VoxCeleb1's folder.

    Raises:
        DataError: it has no recordings.
    """
    parents = [path for pattern in ("wav", "*/wav") for path in Path(root).glob(pattern) if path.is_dir()]
    if not parents:
        raise DataError(f"{root}: has no folder wav, nor dev/wav and test/wav. {PUBLISHED}")
    return {file.relative_to(parent).as_posix(): file for parent in parents for file in parent.glob("*/*/*.wav")}


def trial_lines(root: Union[str, Path], name: str) -> list[tuple[bool, str, str]]:
    """Return the lines of a list of trials: whether the same person speaks, and the names of both utterances.

    Args:
        root: VoxCeleb1's folder.
        name: of the list in it.

    Raises:
        DataError: it cannot be read, or a line has another form.
    """
    path = Path(root) / name
    try:
        lines = enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no such file, or no text in UTF-8 ({error}). {PUBLISHED}") from None
    trials = [(number, line, line.split()) for number, line in lines if line.strip()]
    for number, line, words in trials or [(1, "", [])]:  # an empty file lacks its first line
        if len(words) != 3:
            raise DataError(f"{path} line {number}: must be 'is_same path path', got {line!r}. Correct the list.")
        if words[0] not in ("0", "1"):
            raise DataError(f"{path} line {number}: must begin with 1 (same speaker) or 0, got {words[0]!r}.")
    return [(is_same == "1", first, second) for _, _, (is_same, first, second) in trials]


def recordings_of(trials: list[Trial]) -> list[Clip]:
    """Return every recording of the trials once, in the order in which they come up.

    Args:
        trials: the trials.
    """
    paths = dict.fromkeys(path for trial in trials for path in (trial.first, trial.second))
    return [Clip(str(path), Path(path), ()) for path in paths]


def untested_utterances(root: Union[str, Path], name: str = "veri_test.txt") -> dict[str, Path]:
    """Return the files of the speakers who are in no trial, by name as `find_utterances` has them.

    Args:
        root: VoxCeleb1's folder.
        name: of the list of trials in it.

    Raises:
        DataError: as `trial_lines` and `find_utterances`.
    """
    tested = {speaker_of(key) for _, *pair in trial_lines(root, name) for key in pair}
    return {key: file for key, file in find_utterances(root).items() if speaker_of(key) not in tested}


def speaker_of(name: str) -> str:
    """Return the speaker of an utterance.

    Args:
        name: as `find_utterances` has it.
    """
    return name.split("/")[0]


def read_speakers(root: Union[str, Path], name: str = "veri_test.txt") -> ClipTable:
    """List the recordings of the speakers who are in no trial, labeled with their speaker.

    Args:
        root: VoxCeleb1's folder.
        name: of the list of trials in it.

    Raises:
        DataError: there are not two speakers or more, or the list cannot be read.
    """
    files = untested_utterances(root, name)
    clips = [Clip(str(file), file, (speaker_of(key),)) for key, file in sorted(files.items())]
    speakers = {clip.labels[0] for clip in clips}
    if len(speakers) < 2:
        raise DataError(
            f"{root}: training needs recordings of two speakers or more who are in no trial of {name}, found {len(speakers)}."
        )
    return ClipTable(clips, str(root))
