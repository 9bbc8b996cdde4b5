"""ESC-50: meta/esc50.csv lists the clips and their folds, audio/ holds them."""

from pathlib import Path

from peft_audio.data import Clip, ClipTable, fold_name

from .layout import DataFolder


TITLE = "ESC-50"
PUBLISHED = "the GitHub repository karolpiczak/ESC-50"


def read(root: str | Path, subset: str | None = None) -> ClipTable:
    """The 2,000 clips of ESC-50, or with `subset` "esc10" the 400 clips of ten classes that are ESC-10.

    Raises:
        DataError: a piece of the layout is missing; names it.
    """
    folder = DataFolder(root, TITLE, PUBLISHED)
    folder.check_option("subset", subset, (None, "esc10"))
    columns = ["filename", "fold", "category", *([subset] if subset else [])]
    return folder.table(
        [
            Clip(row["filename"], folder.root / "audio" / row["filename"], (row["category"],), fold_name(row["fold"]))
            for _, row in folder.rows("meta/esc50.csv", columns)
            if subset is None or row[subset].lower() == "true"
        ]
    )
