"""Speech Commands, version 1 and 2: one folder a word, and the lists of the clips that validate and test."""

from dataclasses import replace
from pathlib import Path

from peft_audio.data import ClipTable

from .layout import DataFolder


LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
NOISE = "_background_noise_"


def read(root: str | Path, version: int = 2) -> ClipTable:
    """The clips of Speech Commands; those in neither list train. The recordings of noise are left out.

    Raises:
        DataError: a piece of the layout is missing; names it.
    """
    folder = DataFolder(root, f"Speech Commands v{version}", f"speech_commands_v0.0{version}.tar.gz by TensorFlow")
    splits = folder.split_lists(LISTS)
    clips = [clip for clip in folder.class_folders(folder.root) if clip.labels != (NOISE,)]
    folder.refuse(splits.keys() - {clip.name for clip in clips}, folder.root, "listed audio files are missing")
    return folder.table([replace(clip, split=splits.get(clip.name, "train")) for clip in clips])
