"""GTZAN: one folder a genre, in genres/ or genres_original/. It has no official split."""

from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

from sklearn.model_selection import StratifiedKFold

from peft_audio.data import ClipTable

from .layout import DataFolder


TITLE = "GTZAN Genre Collection"
PUBLISHED = (
    "genres.tar.gz by Marsyas; its fault-filtered split lists as train_filtered.txt, valid_filtered.txt and "
    "test_filtered.txt in the GitHub repository jongpillee/music_dataset_split"
)
FILTERED = {"train": "train_filtered.txt", "validation": "valid_filtered.txt", "test": "test_filtered.txt"}


def read(root: str | Path, folds: int = 10, seed: int = 0, split: str | None = None) -> ClipTable:
    """The 1,000 tracks of GTZAN in folds drawn here, or with `split` "filtered" those of the fault-filtered split.

    Folds are numbered from 1, have the same share of every genre, and depend on the tracks' names and `seed` alone.
    The filtered split (Kereliuk et al., 2015) leaves out damaged and repeated tracks, and keeps each artist in one
    part. Its three lists lie in `root` and have lines such as "blues/blues.00029.wav".

    Raises:
        DataError: a piece of the layout is missing, or a genre has fewer tracks than `folds`; names it.
    """
    folder = DataFolder(root, TITLE, PUBLISHED)
    folder.check_option("split", split, (None, "filtered"))
    parent = folder.folder("genres", "genres_original")
    table = folder.table(folder.class_folders(parent))
    if split is None:
        return replace(table, clips=draw_folds(folder, table.clips, folds, seed))
    splits = {without_suffix(name): part for name, part in folder.split_lists(FILTERED).items()}
    clips = {without_suffix(clip.name): clip for clip in table.clips}
    folder.refuse(splits.keys() - clips.keys(), parent, "tracks of the filtered split are missing")
    return replace(table, clips=[replace(clips[name], split=splits[name]) for name in clips if name in splits])


def draw_folds(folder: DataFolder, clips: list, folds: int, seed: int) -> list:
    genres = [clip.labels[0] for clip in clips]
    fewest = min(Counter(genres).values())
    if not 2 <= folds <= fewest:
        raise folder.error(folder.root, f"folds must be 2 to {fewest}, the tracks of the smallest genre; got {folds}.")
    fold_of = {}
    drawn = StratifiedKFold(folds, shuffle=True, random_state=seed).split(genres, genres)
    for fold, (_, tested) in enumerate(drawn, start=1):
        fold_of.update(dict.fromkeys(tested.tolist(), str(fold)))
    return [replace(clip, fold=fold_of[index]) for index, clip in enumerate(clips)]


def without_suffix(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()
