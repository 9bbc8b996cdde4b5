"""VoxCeleb1: wav/<speaker>/<video>/<utterance>.wav, whole or below dev/ and test/, and lists in text files."""

from dataclasses import dataclass
from pathlib import Path

from peft_audio.data import Clip, ClipTable

from .layout import DataFolder


TITLE = "VoxCeleb1"
PUBLISHED = (
    "vox1_dev_wav.zip, vox1_test_wav.zip, iden_split.txt and veri_test.txt by the Visual Geometry Group, Oxford"
)
SUBSETS = {"1": "train", "2": "validation", "3": "test"}


@dataclass(frozen=True)
class Trial:
    """Two recordings to compare, and whether the same person speaks."""

    is_same: bool
    first: Path
    second: Path


def read(root: str | Path, split: str = "identification", trials: str = "veri_test.txt") -> ClipTable:
    """The utterances of VoxCeleb1, labelled with their speaker.

    Args:
        root: the folder with iden_split.txt or the trials, and the wav folders.
        split: "identification": as iden_split.txt says, every speaker in all three. "verification": all utterances
            of the speakers who are in no trial, to train on; `read_trials` has the test.
        trials: file name of the trials.

    Raises:
        DataError: a piece of the layout is missing; names it.
    """
    folder = DataFolder(root, TITLE, PUBLISHED)
    folder.check_option("split", split, ("identification", "verification"))
    utterances = find_utterances(folder)
    if split == "identification":
        splits = read_subsets(folder)
    else:
        tested = {speaker_of(name) for _, *pair in trial_lines(folder, trials) for name in pair}
        splits = {name: "train" for name in utterances if speaker_of(name) not in tested}
    return folder.table(
        [
            Clip(name, file_of(name, utterances, folder), (speaker_of(name),), split=splits[name])
            for name in sorted(splits)
        ]
    )


def read_trials(root: str | Path, name: str = "veri_test.txt") -> list[Trial]:
    """The trials of speaker verification, from lines such as "1 id10270/x6uYqmx31kE/00001.wav id10270/...".

    Raises:
        DataError: a line has another form, or a recording is missing; names it.
    """
    folder = DataFolder(root, TITLE, PUBLISHED)
    utterances = find_utterances(folder)
    trials = [
        Trial(is_same, file_of(first, utterances, folder), file_of(second, utterances, folder))
        for is_same, first, second in trial_lines(folder, name)
    ]
    folder.check_files(file for trial in trials for file in (trial.first, trial.second))
    return trials


def find_utterances(folder: DataFolder) -> dict[str, Path]:
    """The file of each utterance, by its name in the lists: "<speaker>/<video>/<utterance>.wav"."""
    parents = [path for pattern in ("wav", "*/wav") for path in folder.root.glob(pattern) if path.is_dir()]
    if not parents:
        raise folder.error(folder.root, "has no folder wav, nor dev/wav and test/wav.")
    return {file.relative_to(parent).as_posix(): file for parent in parents for file in parent.glob("*/*/*.wav")}


def file_of(name: str, utterances: dict[str, Path], folder: DataFolder) -> Path:
    """The file of an utterance, or where it would be: `DataFolder.check_files` says so if it is missing."""
    return utterances.get(name, folder.root / "wav" / name)


def read_subsets(folder: DataFolder) -> dict[str, str]:
    splits = {}
    for where, (subset, name) in folder.lines("iden_split.txt", "subset path"):
        if subset not in SUBSETS:
            raise folder.error(where, f"the subset must be 1 (train), 2 (validation) or 3 (test), got {subset!r}.")
        if name in splits:
            raise folder.error(where, f"{name!r} is listed already.")
        splits[name] = SUBSETS[subset]
    return splits


def trial_lines(folder: DataFolder, name: str) -> list[tuple[bool, str, str]]:
    trials = []
    for where, (is_same, first, second) in folder.lines(name, "is_same path path"):
        if is_same not in ("0", "1"):
            raise folder.error(where, f"must begin with 1 (same speaker) or 0, got {is_same!r}.")
        trials.append((is_same == "1", first, second))
    return trials


def speaker_of(name: str) -> str:
    return name.split("/")[0]
