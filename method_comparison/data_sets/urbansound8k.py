"""UrbanSound8K: metadata/UrbanSound8K.csv lists the clips, audio/fold1 to audio/fold10 hold them.

Its columns start and end are times in the recording on Freesound that a clip was cut from, not in the clip.
"""

from pathlib import Path

from peft_audio.data import Clip, ClipTable, fold_name

from .layout import DataFolder


TITLE = "UrbanSound8K"
PUBLISHED = "the Zenodo record UrbanSound8K"


def read(root: str | Path) -> ClipTable:
    """The 8,732 clips of UrbanSound8K, in its ten folds.

    Raises:
        DataError: a piece of the layout is missing; names it.
    """
    folder = DataFolder(root, TITLE, PUBLISHED)
    clips = []
    for _, row in folder.rows("metadata/UrbanSound8K.csv", ["slice_file_name", "fold", "class"]):
        name, fold = row["slice_file_name"], fold_name(row["fold"])
        clips.append(Clip(name, folder.root / "audio" / f"fold{fold}" / name, (row["class"],), fold))
    return folder.table(clips)
