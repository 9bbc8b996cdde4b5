"""Which clips a data set has, their labels, and which of them train and which test. Reads names only, no audio."""

import csv
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split


logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = frozenset(
    [
        ".aac",
        ".aif",
        ".aifc",
        ".aiff",
        ".au",
        ".caf",
        ".flac",
        ".m4a",
        ".mp3",
        ".mp4",
        ".oga",
        ".ogg",
        ".opus",
        ".sph",
        ".w64",
        ".wav",
        ".wave",
        ".webm",
        ".wma",
    ]
)
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


class DataError(ValueError):
    """The description of the data (folders, metadata.csv, split, fold) cannot be used; the message says why."""


@dataclass(frozen=True)
class Clip:
    """One sound: a name unique in its data set, the file or bytes it is in, its labels, and its fold or split.

    `start` and `stop` are seconds in that file, None for its end. `unknown` are the labels of which nobody has said
    whether the clip has them, in data sets that are labelled in part.
    """

    name: str
    source: Path | bytes
    labels: tuple[str, ...]
    fold: str | None = None
    split: str | None = None
    start: float = 0.0
    stop: float | None = None
    unknown: tuple[str, ...] = ()


@dataclass
class ClipTable:
    """All clips of a data set. `origin` names the folder or the data set in error messages."""

    clips: list[Clip]
    origin: str
    multi_label: bool = False


@dataclass
class Splits:
    """Which clips train, which give the final result, and which are looked at during training (may be none)."""

    train: list[Clip]
    test: list[Clip]
    validation: list[Clip] = field(default_factory=list)

    @property
    def clips(self) -> list[Clip]:
        return self.train + self.validation + self.test

    @property
    def labels(self) -> list[str]:
        """The labels of the training clips, sorted."""
        return sorted({label for clip in self.train for label in clip.labels})

    def without(self, names: Iterable[str]) -> "Splits":
        """The same splits, less the clips with these names. Raises `DataError` where that leaves too little."""
        names = set(names)
        kept = {split: [clip for clip in clips if clip.name not in names] for split, clips in vars(self).items()}
        return Splits(**kept).checked("the usable clips")

    def checked(self, origin: str) -> "Splits":
        """Itself, if a classifier can be trained and tested on it; raises `DataError` otherwise."""
        for name, clips in (("training", self.train), ("test", self.test)):
            if not clips:
                raise DataError(
                    f"{origin}: there are no {name} clips ({len(self.train)} to train on, {len(self.test)} to test)."
                )
        for name in ("test", "validation"):
            unseen = {label for clip in getattr(self, name) for label in clip.labels} - set(self.labels)
            if unseen:
                raise DataError(
                    f"{origin}: label {quoted(unseen)} appears in the {name} clips but in no training clip, so it "
                    f"cannot be learnt. Add training clips with it, or take its {name} clips out."
                )
        if len(self.labels) < 2:
            raise DataError(
                f"{origin}: a classifier needs two labels or more, the training clips have {quoted(self.labels)}."
            )
        return self


def read_audiofolder(data_dir: str | Path) -> ClipTable:
    """Lists the clips of a Hugging Face `audiofolder`.

    Either `metadata.csv` with the columns file_name and label (several labels separated by `;`), and optionally fold
    or split; or one folder a class. Both also inside folders named train, validation and test.

    Raises:
        DataError: the folder or a metadata.csv cannot be used; names the file, line, column and value.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise DataError(f"--data_dir {data_dir}: not a folder. Give the folder that holds the audio files.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not (root / "metadata.csv").is_file() and folders and all(path.name.lower() in SPLIT_WORDS for path in folders):
        clips = [clip for folder in folders for clip in read_part(folder, root, split=folder.name)]
    else:
        clips = read_part(root, root)
    return ClipTable(clips, str(data_dir), any(len(clip.labels) > 1 for clip in clips))


def read_part(folder: Path, root: Path, split: str | None = None) -> list[Clip]:
    metadata = folder / "metadata.csv"
    return read_metadata(metadata, root, split) if metadata.is_file() else read_class_folders(folder, root, split)


def read_metadata(path: Path, root: Path, split: str | None = None) -> list[Clip]:
    """The clips a metadata.csv lists, named relative to `root`; `split` is that of its folder, if any."""
    columns, rows = read_rows(path)
    missing = [name for name in ("file_name", "label") if name not in columns]
    if missing:
        raise DataError(
            f"{path}: column {quoted(missing)} is missing, the columns are {quoted(columns) or 'none'}. The first "
            "line must name the columns file_name and label (and optionally fold or split), separated by commas."
        )
    clips, lines = [], {}
    for line, row in rows:
        for column in [name for name in ("file_name", "label", "fold", "split") if name in columns and not row[name]]:
            raise DataError(f"{path} line {line}: column {column!r} is empty. Fill it in or remove the line.")
        source = path.parent / row["file_name"]
        name = source.relative_to(root).as_posix() if source.is_relative_to(root) else str(source)
        if name in lines:
            raise DataError(f"{path} line {line}: {row['file_name']!r} is listed already, in line {lines[name]}.")
        lines[name] = line
        labels = tuple(dict.fromkeys(label.strip() for label in row["label"].split(";") if label.strip()))
        if not labels:
            raise DataError(f"{path} line {line}: column 'label' names no label, it is {row['label']!r}.")
        clips.append(Clip(name, source, labels, fold_name(row.get("fold")), row.get("split", split)))
    if not clips:
        raise DataError(f"{path}: lists no clips.")
    return clips


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Column names, and (line number, values by column) of every row."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, restval="")
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a comma-separated text file in UTF-8 ({error}).") from None
    for line, row in rows:
        if None in row:
            raise DataError(f"{path} line {line}: more values than columns. Put quotes around a value with a comma.")
    return reader.fieldnames, [(line, {name: value.strip() for name, value in row.items()}) for line, row in rows]


def read_class_folders(folder: Path, root: Path, split: str | None = None) -> list[Clip]:
    """The audio files below `folder`, each labelled with the name of the folder that holds it."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    stray = [path.relative_to(root).as_posix() for path in files if path.parent == folder]
    if stray:
        raise DataError(
            f"{folder}: {quoted(stray)} lies in no class folder. Move every file into the folder of its class, or add "
            "a metadata.csv with the columns file_name and label."
        )
    if not files:
        raise DataError(f"{folder}: holds neither a metadata.csv nor class folders with audio files in them.")
    return [Clip(path.relative_to(root).as_posix(), path, (path.parent.name,), None, split) for path in files]


def read_hub_dataset(
    name: str, config_name: str | None = None, audio_column: str = "audio", label_column: str = "label"
) -> ClipTable:
    """Lists the clips of a data set on the Hub, undecoded. Its labels are class indices, texts, or lists of either.

    Raises:
        DataError: a column is missing, or a clip has no label.
    """
    import datasets

    clips, multi_label = [], False
    for split, rows in datasets.load_dataset(name, config_name).items():
        for option, column in (("--audio_column_name", audio_column), ("--label_column_name", label_column)):
            if column not in rows.column_names:
                raise DataError(
                    f"{name}: {option} {column!r} is no column of it, its columns are {quoted(rows.column_names)}."
                )
        rows = rows.cast_column(audio_column, datasets.Audio(decode=False))
        inner = getattr(rows.features[label_column], "feature", None)
        multi_label = multi_label or inner is not None
        to_text = getattr(inner or rows.features[label_column], "int2str", str)
        for index, row in enumerate(rows):
            audio, labels = row[audio_column], row[label_column]
            if labels is None or labels == -1:
                raise DataError(f"{name}: row {index} of split {split!r} has no label in column {label_column!r}.")
            clips.append(
                Clip(
                    f"{split}[{index}] {Path(audio['path'] or '').name}".strip(),
                    Path(audio["path"]) if audio["bytes"] is None else audio["bytes"],
                    tuple(to_text(label) for label in (labels if isinstance(labels, list) else [labels])),
                    fold_name(row.get("fold")),
                    split,
                )
            )
    return ClipTable(clips, name, multi_label)


def choose_splits(table: ClipTable, fold: str | None = None, test_fraction: float = 0.2, seed: int = 0) -> Splits:
    """Training and test clips: by fold if one is given, by split if the data set has them, at random otherwise.

    A fold tests and all other folds train. With splits, train trains and test tests; validation is what is looked at
    during training, and tests where there is no test. At random (drawn by `seed`) every class gives the same share.

    Raises:
        DataError: the fold does not exist, a label has no training clip, a split is empty or has an unknown name, ...
    """
    if fold is not None:
        return split_by_fold(table, fold_name(fold)).checked(f"{table.origin}, fold {fold}")
    for clip in table.clips:
        if clip.split is not None and clip.split.lower() not in SPLIT_WORDS:
            raise DataError(
                f"{table.origin}: the split of {clip.name!r} is {clip.split!r}, it must be one of "
                f"{', '.join(SPLIT_WORDS)}."
            )
    part = {name: [] for name in ("train", "test", "validation")}
    for clip in table.clips:
        part[SPLIT_WORDS[clip.split.lower()] if clip.split else "train"].append(clip)
    if part["test"] or part["validation"]:
        if not part["test"]:
            part["test"], part["validation"] = part["validation"], []
        return Splits(**part).checked(table.origin)
    if any(clip.fold is not None for clip in table.clips):
        logger.warning(
            "%s has folds, which usually keep related recordings together. A random split ignores them and tends to "
            "give too good a result; --fold N tests on fold N.",
            table.origin,
        )
    if not 0 < test_fraction < 1:
        raise DataError(f"--test_fraction must lie between 0 and 1, got {test_fraction}.")
    draw = draw_multi_label if table.multi_label else draw_stratified
    return draw(table, test_fraction, seed).checked(table.origin)


def split_by_fold(table: ClipTable, fold: str) -> Splits:
    folds = sorted({clip.fold for clip in table.clips} - {None})
    if not folds:
        raise DataError(
            f"{table.origin}: --fold {fold} needs a column 'fold', and there is none. Add it to metadata.csv, or "
            "leave --fold out to split by the column 'split' or at random."
        )
    if fold not in folds:
        raise DataError(f"{table.origin}: --fold {fold} does not exist, the folds are {', '.join(folds)}.")
    return Splits(
        [clip for clip in table.clips if clip.fold != fold], [clip for clip in table.clips if clip.fold == fold]
    )


def draw_stratified(table: ClipTable, test_fraction: float, seed: int) -> Splits:
    labels = [clip.labels[0] for clip in table.clips]
    single = [label for label, count in Counter(labels).items() if count < 2]
    if single:
        raise DataError(
            f"{table.origin}: label {quoted(single)} has a single clip, which cannot both train and test. Add clips, "
            "or say what tests in a column 'fold' or 'split'."
        )
    classes = len(set(labels))
    size = min(max(round(test_fraction * len(labels)), classes), len(labels) - classes)
    return Splits(*train_test_split(table.clips, test_size=size, random_state=seed, stratify=labels))


def draw_multi_label(table: ClipTable, test_fraction: float, seed: int) -> Splits:
    left = Counter(label for clip in table.clips for label in clip.labels)
    size, test = round(test_fraction * len(table.clips)), set()
    for index in np.random.default_rng(seed).permutation(len(table.clips)).tolist():
        # A clip may go only while each of its labels keeps a clip to learn from.
        if len(test) < size and all(left[label] > 1 for label in table.clips[index].labels):
            test.add(index)
            left.subtract(table.clips[index].labels)
    train = [clip for index, clip in enumerate(table.clips) if index not in test]
    return Splits(train, [table.clips[index] for index in sorted(test)])


def fold_name(value) -> str | None:
    """A fold's name as text; 1, 1.0 and "01" are the same fold."""
    text = "" if value is None else str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return text or None
    return str(int(number)) if number.is_integer() else text


def quoted(values: Iterable) -> str:
    return ", ".join(repr(value) for value in sorted(values))
