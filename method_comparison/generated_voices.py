"""A small corpus of generated speech in the layout of VoxCeleb1: verify speakers without a download.

    python method_comparison/generated_voices.py VOICES
    python method_comparison/run_recipe.py ipet/ast-voxceleb1 --data_dir VOICES \\
        --model_name_or_path examples/assets/ast-tiny-synthetic --set frames=192 epochs=15 batch_size=16 \\
        learning_rate=0.005 spec_augment=null noise=false \\
        "options={num_virtual_tokens: 4, bottleneck_dim: 64, scaling: 1.0}"
    python examples/speaker_verification.py outputs/recipes/ipet/ast-voxceleb1/trials/seed-0 --data_dir VOICES

The speakers are voices of the synthesizer eSpeak NG, which `pip install espeakng-loader` brings: formants, pitch,
roughness and accent differ. All read the same sentences, so what is said does not tell who says it. A speaker's videos
differ in how fast and how high they speak and in the microphone, so a trial of two videos needs the voice itself. The
same version of the package always gives the same corpus.
"""

import argparse
import ctypes
import importlib.util
import itertools
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import examples_path  # noqa: F401
import librosa
import numpy as np
import soundfile
from synthetic_sounds import SAMPLING_RATE, dsp

from peft_audio.utils.arguments import check_new, run_command
from peft_audio.utils.ranges import Range


# Voices of eSpeak NG, less those that are near copies of others; the speakers of the trials are the last ones.
VOICES = (
    *("m1", "m2", "m4", "m5", "m6", "m8", "f1", "f3", "f4", "klatt", "klatt6", "Alex", "Andrea", "Annie", "Denis"),
    *("Diogo", "Gene", "Jacky", "Lee", "Mario", "Mike", "Nguyen", "Reed", "anika", "antonio", "aunty", "belinda"),
    *("boris", "david", "edward", "grandma", "grandpa", "gustave", "iven", "john", "linda", "marcelo", "max"),
    *("norbert", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby", "travis", "victor"),
    *("m3", "f2", "klatt4", "Andy", "f5", "Storm", "Alicia", "ed", "m7", "steph", "Marco", "pablo"),
)
TEST_SPEAKERS = 12
ACCENTS = ("en-us", "en", "en-gb-scotland", "de", "es", "it", "fr", "nl", "pl", "sv", "en-029", "pt")  # all in English
SENTENCES = (
    "Before the shop opens in the morning, the baker carries nine warm loaves across the yard to his brother's cart.",
    "Nobody on the ferry had noticed the grey dog until it jumped ashore and ran along the harbour wall.",
    "My aunt keeps a jar of blue buttons on the shelf above the stove, and she counts them every winter.",
    "If the river rises again this week, we should move the chairs and the piano to the upper floor.",
    "He bought two tickets for the late train, then waited an hour for a friend who never came.",
    "The children built a tower of wet sand and watched the evening tide take it away piece by piece.",
    "She opened the window, listened to the thunder behind the hills, and went on writing her long letter.",
    "Our teacher says that old maps are full of mistakes, yet they show what people once hoped to find.",
)
# Of a speaker's videos: words a minute, and pitch on eSpeak NG's scale of 0 to 99.
STYLES = ((150, 44), (175, 54), (160, 48), (185, 51))
SENTENCES_A_VIDEO = 2
NUM_SENTENCES = Range(SENTENCES_A_VIDEO + 1, len(SENTENCES), whole=True)
# Of microphones: ranges of the tilt (dB an octave), of two peaks or dips (dB) and of the signal-to-noise ratio (dB).
TILT, PEAKS, NOISE = (-2, 2), (-4, 4), (15, 30)
LEVEL = 0.5  # peak of every recording, of a full scale of 1
SYNCHRONOUS, DO_NOT_EXIT, RATE, PITCH, CHARACTERS, UTF_8 = 2, 0x8000, 1, 3, 1, 1  # of speak_lib.h
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Utterance:
    """A sentence of a speaker; both are indices."""

    speaker: int
    sentence: int

    @property
    def video(self) -> int:
        return self.sentence // SENTENCES_A_VIDEO

    @property
    def path(self) -> str:
        return f"id{10001 + self.speaker}/video{self.video + 1}/{self.sentence + 1:05d}.wav"

    @property
    def voice(self) -> str:
        return f"{ACCENTS[self.speaker % len(ACCENTS)]}+{VOICES[self.speaker]}"

    @property
    def text(self) -> str:
        return SENTENCES[self.sentence]

    @property
    def style(self) -> tuple[int, int]:
        return STYLES[self.video]


def write_corpus(folder: str | Path, sentences: int = len(SENTENCES)) -> None:
    """Write wav/<speaker>/<video>/<utterance>.wav, iden_split.txt and veri_test.txt.

    The trials are all pairs of recordings of a test speaker from two videos, and as many of two test speakers, drawn
    among those of different sentences. In iden_split.txt the last two recordings of a speaker are validation and test.

    Args:
        folder: is made, whole or not at all; may exist if it is empty.
        sentences: recordings of each speaker, two a video.

    Raises:
        ValueError: `sentences` is out of range, the folder has files in it, or eSpeak NG lacks a voice.
        ModuleNotFoundError: espeakng-loader is not installed.
    """
    folder = Path(folder).absolute()
    NUM_SENTENCES.check("sentences", sentences)
    check_new("folder", folder)
    utterances = [Utterance(speaker, sentence) for speaker in range(len(VOICES)) for sentence in range(sentences)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        partial = Path(temporary) / folder.name
        for utterance, waveform in zip(utterances, speak(utterances), strict=True):
            path = partial / "wav" / utterance.path
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, recorded(waveform, utterance), SAMPLING_RATE)
        write_lines(partial / "iden_split.txt", identification(utterances, sentences))
        write_lines(partial / "veri_test.txt", trials(utterances[-TEST_SPEAKERS * sentences :]))
        os.replace(partial, folder)


def identification(utterances: list[Utterance], sentences: int) -> list[str]:
    """The lines of iden_split.txt: 1 for training, 2 for validation, 3 for test."""
    subsets = itertools.cycle([1] * (sentences - 2) + [2, 3])
    return [f"{subset} {utterance.path}" for subset, utterance in zip(subsets, utterances)]


def trials(utterances: list[Utterance]) -> list[str]:
    """The lines of veri_test.txt, 1 for the same speaker and 0 for others, as many of both."""
    pairs = list(itertools.combinations(utterances, 2))
    same = [(one, two) for one, two in pairs if one.speaker == two.speaker and one.video != two.video]
    others = [(one, two) for one, two in pairs if one.speaker != two.speaker and one.sentence != two.sentence]
    drawn = sorted(np.random.default_rng(0).choice(len(others), len(same), replace=False))
    labeled = [(1, *pair) for pair in same] + [(0, *others[index]) for index in drawn]
    return [f"{label} {one.path} {two.path}" for label, one, two in labeled]


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def recorded(waveform: np.ndarray, utterance: Utterance) -> np.ndarray:
    """The waveform as the microphone of its video records it: filtered, with noise, `LEVEL` high."""
    rng = np.random.default_rng([utterance.speaker, utterance.video])
    tilt, peaks, centers = rng.uniform(*TILT), rng.uniform(*PEAKS, 2), dsp.log_uniform(rng, 150, 6000, 2)
    ratio, slope = rng.uniform(*NOISE), rng.uniform(0, 2)

    def gain(frequencies: np.ndarray) -> np.ndarray:
        octaves = np.log2(np.maximum(frequencies, 30) / centers[:, None])
        return dsp.decibels(tilt * octaves[0] + peaks @ np.exp(-(octaves**2)))

    waveform = dsp.apply_gain(waveform, gain)
    noise = dsp.colored_noise(np.random.default_rng([utterance.speaker, utterance.sentence]), len(waveform), slope)
    waveform = waveform + noise * np.sqrt(np.mean(waveform**2) / np.mean(noise**2)) * dsp.decibels(-ratio)
    return LEVEL / np.abs(waveform).max() * waveform


# ---- eSpeak NG -------------------------------------------------------------------------------------------------------


class Spoken(Protocol):
    """What a voice of eSpeak NG says, and how: words a minute, and pitch."""

    @property
    def voice(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def style(self) -> tuple[int, int]: ...


def speak(utterances: Sequence[Spoken]) -> list[np.ndarray]:
    """What is spoken, each float32 of shape (samples,) at 16 kHz.

    Raises:
        ModuleNotFoundError: espeakng-loader is not installed.
    """
    if importlib.util.find_spec("espeakng_loader") is None:
        raise ModuleNotFoundError("The voices are those of eSpeak NG, which is missing: pip install espeakng-loader")
    # The library keeps its state from one utterance to the next and cannot be set back: only a new process gives the
    # same samples again.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        rate, waveforms = process.submit(synthesize, utterances).result()
    return [librosa.resample(waveform, orig_sr=rate, target_sr=SAMPLING_RATE) for waveform in waveforms]


def synthesize(utterances: Sequence[Spoken]) -> tuple[int, list[np.ndarray]]:
    """The sampling rate in Hz, and the samples of each utterance, float32, full scale 1.

    Raises:
        ValueError: eSpeak NG cannot be started, or lacks a voice or language.
    """
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    chunks: list[np.ndarray] = []

    @CALLBACK
    def receive(samples, count, events) -> int:
        if samples and count > 0:  # there are none at the end of an utterance
            chunks.append(np.ctypeslib.as_array(samples, (count,)) / np.float32(32768))
        return 0

    data = Path(espeakng_loader.get_data_path())
    variants = dict.fromkeys(utterance.voice.rpartition("+")[2] for utterance in utterances)
    missing = [variant for variant in variants if not (data / "voices" / "!v" / variant).is_file()]
    if missing:  # eSpeak NG would speak with its usual voice instead
        raise ValueError(f"{data}: eSpeak NG has no voice {', '.join(missing)}. Install espeakng-loader 0.2.4.")
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, os.fsencode(data), DO_NOT_EXIT)
    if rate <= 0:
        raise ValueError(f"{data}: eSpeak NG cannot read its data. Install espeakng-loader again.")
    library.espeak_SetSynthCallback(receive)
    library.espeak_ng_SetRandSeed(ctypes.c_long(0))
    waveforms = []
    for utterance in utterances:
        if library.espeak_SetVoiceByName(utterance.voice.encode()) != 0:
            raise ValueError(f"{data}: eSpeak NG cannot speak {utterance.voice!r}. Install espeakng-loader 0.2.4.")
        words_a_minute, pitch = utterance.style
        library.espeak_SetParameter(RATE, words_a_minute, 0)
        library.espeak_SetParameter(PITCH, pitch, 0)
        text = utterance.text.encode()
        size = ctypes.c_size_t(len(text) + 1)
        library.espeak_Synth(text, size, 0, CHARACTERS, 0, UTF_8, None, None)
        waveforms.append(np.concatenate(chunks))
        chunks.clear()
    return rate, waveforms


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="is made; must be new or empty")
    parser.add_argument("--sentences", type=NUM_SENTENCES, default=len(SENTENCES), help="recordings of each speaker")
    write_corpus(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    run_command(main, (ModuleNotFoundError, OSError, ValueError))
