"""OpenMIC-2018: labels of the instruments somebody was asked about, two lists of clips, audio/000/000046_3840.ogg."""

import json
import zipfile
from pathlib import Path

import numpy as np

from peft_audio.data import Clip, ClipTable

from .layout import DataFolder


TITLE = "OpenMIC-2018"
PUBLISHED = "the Zenodo record OpenMIC-2018"
LABELS_CSV = "openmic-2018-aggregated-labels.csv"
LABELS_NPZ = "openmic-2018.npz"
PARTITIONS = {"train": "partitions/split01_train.csv", "test": "partitions/split01_test.csv"}


def read(root: str | Path) -> ClipTable:
    """The 20,000 clips of OpenMIC-2018 in its two partitions.

    A clip has the instruments with a relevance of 0.5 or more; those nobody was asked about are its `unknown`. The
    labels come from the csv file, or from the npz file where there is none.

    Raises:
        DataError: a piece of the layout is missing, or the npz file holds pickled Python objects; names it.
    """
    folder = DataFolder(root, TITLE, PUBLISHED)
    instruments = read_instruments(folder)
    splits = folder.split_lists(PARTITIONS)
    from_npz = not (folder.root / LABELS_CSV).is_file() and (folder.root / LABELS_NPZ).is_file()
    relevance = (relevance_from_npz if from_npz else relevance_from_csv)(folder, instruments)
    folder.refuse(splits.keys() - relevance.keys(), folder.root, "clips of the partitions have no labels")
    folder.refuse(relevance.keys() - splits.keys(), folder.root, "labeled clips are in no partition")
    clips = []
    for name in sorted(splits):
        known = relevance[name]
        clips.append(
            Clip(
                name,
                folder.root / "audio" / name[:3] / f"{name}.ogg",
                tuple(instrument for instrument in instruments if known.get(instrument, 0) >= 0.5),
                split=splits[name],
                unknown=tuple(instrument for instrument in instruments if instrument not in known),
            )
        )
    return folder.table(clips, multi_label=True)


def read_instruments(folder: DataFolder) -> list[str]:
    """The instruments by index, which is that of their column in the npz file."""
    path = folder.file("class-map.json")
    try:
        class_map = json.loads(path.read_text(encoding="utf-8"))
        instruments = sorted(class_map, key=class_map.get)
        well_formed = [class_map[instrument] for instrument in instruments] == list(range(len(class_map)))
    except (ValueError, TypeError, AttributeError):
        well_formed = False
    if not well_formed:
        raise folder.error(path, 'must map the instruments to 0, 1, 2, ...: {"accordion": 0, "banjo": 1, ...}.')
    return instruments


def relevance_from_csv(folder: DataFolder, instruments: list[str]) -> dict[str, dict[str, float]]:
    """The relevance, 0 to 1, of the instruments somebody was asked about, by clip."""
    relevance = {}
    for where, row in folder.rows(LABELS_CSV, ["sample_key", "instrument", "relevance"]):
        if row["instrument"] not in instruments:
            raise folder.error(where, f"instrument {row['instrument']!r} is not in class-map.json.")
        try:
            value = float(row["relevance"])
        except ValueError:
            value = float("nan")
        if not 0 <= value <= 1:
            raise folder.error(where, f"relevance must be a number from 0 to 1, got {row['relevance']!r}.")
        relevance.setdefault(row["sample_key"], {})[row["instrument"]] = value
    return relevance


def relevance_from_npz(folder: DataFolder, instruments: list[str]) -> dict[str, dict[str, float]]:
    """The same, from Y_true and Y_mask of shape (clips, instruments) and sample_key of shape (clips,)."""
    path = folder.file(LABELS_NPZ)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values, known, names = (arrays[name] for name in ("Y_true", "Y_mask", "sample_key"))
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise folder.error(
            path,
            f"cannot be read ({error}). Pickled arrays are refused: to unpickle a file is to run its code, and the "
            f"published file pickles sample_key. Put {LABELS_CSV} beside it, which has the same labels as text.",
        ) from None
    if names.dtype.kind != "U" or not values.shape == known.shape == (len(names), len(instruments)):
        raise folder.error(
            path,
            f"sample_key must be texts, and Y_true and Y_mask of shape ({names.size}, {len(instruments)}); got "
            f"{names.dtype}, {values.shape} and {known.shape}.",
        )
    return {
        name: {instruments[index]: float(row[index]) for index in np.flatnonzero(asked)}
        for name, row, asked in zip(names.tolist(), values, known, strict=True)
    }
