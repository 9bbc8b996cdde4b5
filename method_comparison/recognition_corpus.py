"""A small transcribed corpus of generated speech, full of rare names and of numbers: recognizers adapt without a download.

    python method_comparison/recognition_corpus.py CORPUS
    python examples/train_asr.py --method parallel_mlp --model_name_or_path openai/whisper-tiny.en --data_dir CORPUS \\
        --max_seconds 4 --output_dir OUT

CORPUS is an `audiofolder`: metadata.csv with file_name, transcription and split. The speakers are voices of the synthesizer
eSpeak NG, which `pip install espeakng-loader` brings, with its American accent. No voice, no sentence and no wording is in two
splits. Half of the sentences to validate and to test on have names that are also in the training sentences, in other
sentences; half have names that are in none. The same version of the package always gives the same corpus.
"""

import argparse
import csv
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import examples_path  # noqa: F401
import numpy as np
import soundfile
from generated_voices import speak
from synthetic_sounds import SAMPLING_RATE

from peft_audio.utils.arguments import check_new, run_command


TRAIN, VALIDATION, TEST = "train", "validation", "test"
VOICES = {  # variants of eSpeak NG, by split
    TRAIN: ("m1", "m2", "m4", "m5", "f1", "f3", "f4", "Alex", "Andrea", "Diogo", "Gene", "linda"),
    VALIDATION: ("m6", "f2", "Lee"),
    TEST: ("m3", "m7", "f5", "Annie", "Mario", "victor"),
}
SENTENCES = {TRAIN: 12, VALIDATION: 16, TEST: 16}  # of each voice
WORDINGS = {
    TRAIN: (
        "{person} booked room {number} in {place}.",
        "Please send {number} boxes to {person}.",
        "The train to {place} leaves from platform {number}.",
        "Doctor {person} has {number} patients.",
        "Flight {number} from {place} is late.",
        "{person} paid {number} dollars for the piano.",
        "Turn left at {place} and drive {number} miles.",
        "{person} and {other} live at number {number}.",
        "The mayor of {place} called {person}.",
        "There are {number} letters for {person}.",
    ),
    VALIDATION: (
        "We need {number} chairs in {place}.",
        "{person} wrote page {number} of the report.",
        "Is {person} on bus {number}?",
        "My aunt from {place} knows {person}.",
    ),
    TEST: (
        "Ask {person} for {number} tickets.",
        "The {place} library has {number} maps.",
        "{person} moved to {place} last year.",
        "Give {number} apples to {person} and {other}.",
    ),
}
SEEN, UNSEEN = "seen", "unseen"
PEOPLE = {
    SEEN: (
        *("Okonkwo", "Takahashi", "Kowalczyk", "Bergstrom", "Thibodeaux", "Villanueva", "Papadakis", "Szymanski"),
        *("Lindqvist", "Abernathy", "Castellano", "Dombrowski", "Guerrero", "Hashimoto", "Kavanaugh", "Mukherjee"),
    ),
    UNSEEN: (
        *("Adeyemi", "Birkeland", "Czerwinski", "Delacroix", "Eszterhazy", "Ferreira", "Nakagawa", "Oyelaran"),
        *("Rasmussen", "Santangelo", "Tchaikovsky", "Wojcik"),
    ),
}
PLACES = {
    SEEN: (
        "Tuscaloosa",
        "Poughkeepsie",
        "Schenectady",
        "Chattanooga",
        "Kalamazoo",
        "Ypsilanti",
        "Okefenokee",
        "Oconomowoc",
    ),
    UNSEEN: ("Winnipesaukee", "Punxsutawney", "Waxahachie", "Kissimmee", "Sheboygan", "Wenatchee"),
}
NUMBERS = (12, 990)  # the lowest, and the one behind the highest
WORDS_A_MINUTE, PITCHES = 185, (42, 58)
LEVEL = 0.5  # peak of every recording, of a full scale of 1


@dataclass(frozen=True)
class Sentence:
    """What a voice says, and how; `names` says whether training sentences have its names."""

    split: str
    variant: str
    text: str
    names: str
    number: int
    pitch: int

    @property
    def path(self) -> str:
        return f"{self.split}/{self.variant}/{self.names}-{self.number + 1:02d}.wav"

    @property
    def voice(self) -> str:
        return f"en-us+{self.variant}"

    @property
    def style(self) -> tuple[int, int]:
        return WORDS_A_MINUTE, self.pitch


def sentences(split: str) -> list[Sentence]:
    """All that is said in a split: no two sentences are the same."""
    rng = np.random.default_rng(list(VOICES).index(split))
    said: dict[str, Sentence] = {}
    for variant in VOICES[split]:
        for number in range(SENTENCES[split]):
            names = SEEN if split == TRAIN or number % 2 == 0 else UNSEEN
            text = new_text(split, names, len(said), rng, said)
            said[text] = Sentence(split, variant, text, names, number, int(rng.integers(*PITCHES)))
    return list(said.values())


def new_text(split: str, names: str, index: int, rng: np.random.Generator, said: dict) -> str:
    """A sentence that is not among those `said`; wordings take turns, and names and the number are drawn."""
    wordings = WORDINGS[split]
    wording = wordings[(index if split == TRAIN else index // 2) % len(wordings)]
    while True:
        person, other = rng.choice(PEOPLE[names], 2, replace=False)
        place, number = rng.choice(PLACES[names]), rng.integers(*NUMBERS)
        text = wording.format(person=person, other=other, place=place, number=number)
        if text not in said:
            return text


def write_corpus(folder: str | Path) -> None:
    """Write the clips and metadata.csv.

    Args:
        folder: is made, whole or not at all; may exist if it is empty.

    Raises:
        ValueError: the folder has files in it, or eSpeak NG lacks a voice.
        ModuleNotFoundError: espeakng-loader is not installed.
    """
    folder = Path(folder).absolute()
    check_new("folder", folder)
    said = [sentence for split in VOICES for sentence in sentences(split)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        partial = Path(temporary) / folder.name
        for sentence, waveform in zip(said, speak(said), strict=True):
            path = partial / sentence.path
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, LEVEL / np.abs(waveform).max() * waveform, SAMPLING_RATE)
        with (partial / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            rows = [(sentence.path, sentence.text, sentence.split) for sentence in said]
            csv.writer(file).writerows([("file_name", "transcription", "split"), *rows])
        os.replace(partial, folder)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="is made; must be new or empty")
    write_corpus(parser.parse_args(arguments).folder)


if __name__ == "__main__":
    run_command(main, (ModuleNotFoundError, OSError, ValueError))
