"""Clips to compute features of, and a feature extractor that counts its calls."""

import time

import numpy as np
import soundfile
from sounds import tone

from peft_audio.data import Clip


class Recorder:
    """A feature extractor that appends a line to the file `log` for every clip, waits, and returns some megabytes."""

    sampling_rate = 16000
    log = None
    seconds = 0.0
    copies = 1

    def __init__(self, gain=1.0):
        self.gain = gain

    def to_dict(self):
        return {"gain": self.gain}

    def __call__(self, waveform, sampling_rate, return_tensors):
        with open(self.log, "a") as file:
            file.write("called\n")
        time.sleep(self.seconds)
        return {"input_values": [self.gain * np.tile(waveform, (self.copies, 1))]}


class OtherRecorder(Recorder):
    pass


def write_clips(folder, count=6, seconds=0.1):
    folder.mkdir(parents=True, exist_ok=True)
    clips = [Clip(f"{index}.wav", folder / f"{index}.wav", ("x",)) for index in range(count)]
    for seed, clip in enumerate(clips):
        soundfile.write(clip.source, tone("low", seconds, seed=seed), 16000)
    return clips


def entries(folder):
    return sorted(folder.rglob("*.safetensors"))


def assert_same(features, expected):
    assert list(features) == list(expected)
    for name in expected:
        assert features[name].keys() == expected[name].keys()
        for key, value in expected[name].items():
            np.testing.assert_array_equal(features[name][key], value, strict=True)
