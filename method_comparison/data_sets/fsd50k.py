"""FSD50K: FSD50K.ground_truth/ has dev.csv, eval.csv and vocabulary.csv; two folders hold the audio."""

from pathlib import Path

from peft_audio.data import Clip, ClipTable

from .layout import DataFolder


TITLE = "FSD50K"
PUBLISHED = "the Zenodo record FSD50K"
SPLITS = {"train": "train", "val": "validation"}


def read(root: str | Path) -> ClipTable:
    """The 51,197 clips of FSD50K: dev.csv says which train and which validate, those of eval.csv test.

    Raises:
        DataError: a piece of the layout is missing, or a label is not in vocabulary.csv; names it.
    """
    folder = DataFolder(root, TITLE, PUBLISHED)
    vocabulary = {label for _, (_, label, _) in folder.lines("FSD50K.ground_truth/vocabulary.csv", "index,label,mid")}
    clips = []
    for part, columns in (("dev", ["fname", "labels", "split"]), ("eval", ["fname", "labels"])):
        for where, row in folder.rows(f"FSD50K.ground_truth/{part}.csv", columns):
            labels = tuple(row["labels"].split(","))
            folder.refuse(set(labels) - vocabulary, where, "labels are not in vocabulary.csv")
            split = row["split"] if part == "dev" else "test"
            if part == "dev" and split not in SPLITS:
                raise folder.error(where, f"split must be train or val, got {split!r}.")
            name = f"FSD50K.{part}_audio/{row['fname']}.wav"
            clips.append(Clip(name, folder.root / name, labels, split=SPLITS.get(split, split)))
    return folder.table(clips, multi_label=True)
