"""VoxCeleb1: wav/<speaker>/<video>/<utterance>.wav, whole or below dev/ and test/, and lists in text files."""

from pathlib import Path

from peft_audio.data import Clip, ClipTable
from peft_audio.data.trials import find_utterances, speaker_of, untested_utterances

from .layout import DataFolder


TITLE = "VoxCeleb1"
PUBLISHED = (
    "vox1_dev_wav.zip, vox1_test_wav.zip, iden_split.txt and veri_test.txt by the Visual Geometry Group, Oxford"
)
SUBSETS = {"1": "train", "2": "validation", "3": "test"}


def read(root: str | Path, split: str = "identification", trials: str = "veri_test.txt") -> ClipTable:
    """The utterances of VoxCeleb1, labeled with their speaker.

    Args:
        root: the folder with iden_split.txt or the trials, and the wav folders.
        split: "identification": as iden_split.txt says, every speaker in all three. "verification": all utterances
            of the speakers who are in no trial, to train on; `peft_audio.data.read_trials` has the test.
        trials: file name of the trials.

    Raises:
        DataError: a piece of the layout is missing; names it.
    """
    folder = DataFolder(root, TITLE, PUBLISHED)
    folder.check_option("split", split, ("identification", "verification"))
    utterances = find_utterances(folder.root)
    if split == "identification":
        splits = read_subsets(folder)
    else:
        splits = dict.fromkeys(untested_utterances(folder.root, trials), "train")
    return folder.table(
        [
            Clip(name, file_of(name, utterances, folder), (speaker_of(name),), split=splits[name])
            for name in sorted(splits)
        ]
    )


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
