"""Published data sets of sounds, read from the folders they were unpacked into: one row of `DATA_SETS` each.

    from data_sets import DATA_SETS
    table = DATA_SETS["esc50"].read("ESC-50-master")

A reader lists names, labels, folds and splits, and checks that the audio files are there; it reads no audio.
"""

import functools
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from peft_audio.data import ClipTable, read_audiofolder
from peft_audio.utils.ranges import SEED, Range

from . import epic_sounds, esc50, fsd50k, gtzan, openmic2018, speech_commands, urbansound8k, voxceleb1
from .options import FileName, OneOf, check_options


__all__ = ["DATA_SETS", "DataSet"]


@dataclass(frozen=True)
class DataSet:
    """What is known of a published data set.

    Args:
        title: its official name.
        read: reads its folder: `read(root, **options) -> ClipTable`; the options are described there.
        num_labels: how many labels there are; None if the folder decides.
        seconds: the usual length of a clip; where lengths vary, what the papers cut or pad a clip to.
        facts: its size, and the paper to cite.
        multi_label: whether a clip can have several labels.
        folds: how many folds it is tested on in turn; None if it has splits.
        splits: the parts it is divided into, if any.
        input_mean, input_std: of its log Mel spectrograms as AST takes them, over the training clips (AAT's code);
            None where no paper gives them.
        options: by name, the values that the options of `read` take.
    """

    title: str
    read: Callable[..., ClipTable]
    num_labels: int | None
    seconds: float
    facts: str
    multi_label: bool = False
    folds: int | None = None
    splits: tuple[str, ...] = ()
    input_mean: float | None = None
    input_std: float | None = None
    options: Mapping[str, Container] = field(default_factory=dict)

    def check_options(self, options: Mapping[Any, Any]) -> None:
        """Check the options of `read` without reading. Raises `ValueError` where one is of no use."""
        check_options(options, self.options)
        if options.get("split") is not None and {"folds", "seed"} & set(options):
            raise ValueError(
                "folds and seed draw folds, which there are none of where a split is given: leave one out."
            )

    def fold_names(self, options: Mapping[str, Any]) -> list[str] | None:
        """Return the names of the folds that `read` gives with these options; None where the folder decides."""
        if self.num_labels is None:
            return None
        count = 0 if options.get("split") is not None else options.get("folds", self.folds or 0)
        return [str(number) for number in range(1, count + 1)]


TRAIN_VALIDATION_TEST = ("train", "validation", "test")

DATA_SETS = {
    "audiofolder": DataSet(
        "a folder of your own",
        read_audiofolder,
        None,
        10.0,
        "Class folders, or metadata.csv with file_name, label, and fold or split.",
    ),
    "esc50": DataSet(
        esc50.TITLE,
        esc50.read,
        50,
        5.0,
        "2,000 clips; 400 of them are ESC-10. Piczak, ESC: Dataset for Environmental Sound Classification, 2015.",
        folds=5,
        input_mean=-6.6268077,
        input_std=5.358466,
        options={"subset": OneOf([None, "esc10"])},
    ),
    "fsd50k": DataSet(
        fsd50k.TITLE,
        fsd50k.read,
        200,
        10.24,
        "51,197 clips of 0.3 to 30 s. Fonseca et al., FSD50K: An Open Dataset of Human-Labeled Sound Events, 2022.",
        multi_label=True,
        splits=TRAIN_VALIDATION_TEST,
    ),
    "gtzan": DataSet(
        gtzan.TITLE,
        gtzan.read,
        10,
        30.0,
        "1,000 tracks. Tzanetakis and Cook, Musical Genre Classification of Audio Signals, 2002.",
        folds=10,
        input_mean=-3.0708861,
        input_std=3.4615202,
        # Each genre has 100 tracks.
        options={"folds": Range(2, 100, whole=True), "seed": SEED, "split": OneOf([None, "filtered"])},
    ),
    "speech_commands_v1": DataSet(
        "Speech Commands v1",
        functools.partial(speech_commands.read, version=1),
        30,
        1.0,
        "64,727 clips. Warden, Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition, 2018.",
        splits=TRAIN_VALIDATION_TEST,
        input_mean=-6.785136,
        input_std=5.496325,
    ),
    "speech_commands_v2": DataSet(
        "Speech Commands v2",
        functools.partial(speech_commands.read, version=2),
        35,
        1.0,
        "105,829 clips. Warden, Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition, 2018.",
        splits=TRAIN_VALIDATION_TEST,
        input_mean=-6.845978,
        input_std=5.5654526,
    ),
    "voxceleb1": DataSet(
        voxceleb1.TITLE,
        voxceleb1.read,
        1251,
        4.0,
        "153,516 utterances. Nagrani, Chung and Zisserman, VoxCeleb: A Large-Scale Speaker Identification Dataset, "
        "2017.",
        splits=TRAIN_VALIDATION_TEST,
        options={"split": OneOf(["identification", "verification"]), "trials": FileName()},
    ),
    "urbansound8k": DataSet(
        urbansound8k.TITLE,
        urbansound8k.read,
        10,
        4.0,
        "8,732 clips of 4 s or less. Salamon, Jacoby and Bello, A Dataset and Taxonomy for Urban Sound Research, 2014.",
        folds=10,
        input_mean=-4.451961,
        input_std=3.9357858,
    ),
    "openmic2018": DataSet(
        openmic2018.TITLE,
        openmic2018.read,
        20,
        10.0,
        "20,000 clips, labeled in part. Humphrey, Durand and McFee, OpenMIC-2018: An Open Data-set for Multiple "
        "Instrument Recognition, 2018.",
        multi_label=True,
        splits=("train", "test"),
        input_mean=-4.0147066,
        input_std=4.0522056,
    ),
    "epic_sounds": DataSet(
        epic_sounds.TITLE,
        epic_sounds.read,
        44,
        10.24,
        "78,366 segments, 4.9 s on average. Huh et al., EPIC-SOUNDS: A Large-Scale Dataset of Actions That Sound, 2023.",
        splits=("train", "validation"),
    ),
}
