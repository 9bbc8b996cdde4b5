"""EPIC-SOUNDS: segments of the sound of EPIC-KITCHENS-100, listed in EPIC_Sounds_train.csv and ..._validation.csv.

The sound of a video is <video_id>.wav or .flac anywhere below audio/ or <participant>/audio/.
"""

import re
from pathlib import Path

from peft_audio.data import Clip, ClipTable

from .layout import DataFolder


TITLE = "EPIC-SOUNDS"
PUBLISHED = (
    "the GitHub repository epic-kitchens/epic-sounds-annotations; its sound is that of the videos of "
    "EPIC-KITCHENS-100, to be extracted to audio/<video_id>.wav"
)
COLUMNS = ["annotation_id", "video_id", "start_timestamp", "stop_timestamp", "class"]


def read(root: str | Path) -> ClipTable:
    """The labeled segments of EPIC-SOUNDS, in its two splits. (The labels of its test split are not published.)

    Raises:
        DataError: a piece of the layout is missing, or a segment does not end after it starts; names it.
    """
    folder = DataFolder(root, TITLE, PUBLISHED)
    videos = find_videos(folder)
    clips = []
    for split in ("train", "validation"):
        for where, row in folder.rows(f"EPIC_Sounds_{split}.csv", COLUMNS):
            start, stop = (seconds(folder, where, row, f"{edge}_timestamp") for edge in ("start", "stop"))
            if start >= stop:
                raise folder.error(where, f"the segment must end after it starts, got {start} s to {stop} s.")
            video = row["video_id"]
            source = videos.get(video, folder.root / "audio" / f"{video}.wav")
            clips.append(Clip(row["annotation_id"], source, (row["class"],), split=split, start=start, stop=stop))
    return folder.table(clips)


def find_videos(folder: DataFolder) -> dict[str, Path]:
    files = [
        file
        for pattern in ("audio/**/*", "*/audio/**/*")
        for file in sorted(folder.root.glob(pattern))
        if file.suffix.lower() in (".wav", ".flac") and not file.name.startswith(".")
    ]
    if not files:
        raise folder.error(folder.root, "has no .wav or .flac file below audio/ or <participant>/audio/.")
    return {file.stem: file for file in reversed(files)}


def seconds(folder: DataFolder, where: str, row: dict[str, str], column: str) -> float:
    match = re.fullmatch(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d+)?)", row[column])
    if match is None:
        raise folder.error(where, f"{column} must be a time such as 00:00:02.466, got {row[column]!r}.")
    hours, minutes, rest = match.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)
