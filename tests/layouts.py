"""Tiny copies of published data sets in their own layouts: every clip holds a tone for each label it has."""

import json

import numpy as np
import pytest
import soundfile

from peft_audio.data import DataError


RATE = 8000
TONE_LABELS = [
    *("dog", "rooster", "cat", "Bark", "Dog", "Rain", "blues", "jazz", "bed", "yes", "id10001", "id10002", "id10270"),
    *("id10271", "siren", "dog_bark", "drums", "piano", "voice", "water", "footstep", "none of them"),
]
FREQUENCIES = {label: 300 + 150 * index for index, label in enumerate(TONE_LABELS)}

GTZAN_NAMES = [f"{genre}/{genre}.{number:05d}" for genre in ("blues", "jazz") for number in range(10)]
GTZAN_LISTS = {"train": [0, 1, 10, 11], "valid": [2, 12], "test": [3, 13]}
COMMANDS = {"bed/0.wav": None, "bed/1.wav": "validation", "yes/0.wav": None, "yes/1.wav": "testing"}
UTTERANCES = [
    f"{speaker}/video{video}/{part:05d}.wav"
    for speaker in ("id10001", "id10002", "id10270", "id10271")
    for video, part in ((0, 1), (0, 2), (1, 1))
]
OPENMIC_KEYS = ("000046_3840", "000135_483840", "001138_0")
OPENMIC_RELEVANCE = [
    ("000046_3840", "piano", 0.5),
    ("000046_3840", "voice", 0.9),
    ("000135_483840", "drums", 1.0),
    ("000135_483840", "piano", 0.49),
    ("001138_0", "voice", 0.0),
]
OPENMIC_CLASSES = {"drums": 0, "piano": 1, "voice": 2}


def tones(labels, seconds=0.1):
    """The tones of these labels, float64, shape (samples,)."""
    time = np.arange(round(seconds * RATE)) / RATE
    return 0.2 * sum(np.sin(2 * np.pi * FREQUENCIES[label] * time) for label in labels)


def write_audio(path, labels, seconds=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tones(labels, seconds), RATE)


def write_text(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def esc50(root):
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, (label, esc10) in enumerate((("dog", True), ("rooster", True), ("cat", False))):
            name = f"{fold}-{100 + target}-A-{target}.wav"
            lines.append(f"{name},{fold},{target},{label},{esc10},{100 + target},A")
            write_audio(root / "audio" / name, [label])
    write_text(root / "meta" / "esc50.csv", lines)


def fsd50k(root):
    truth = root / "FSD50K.ground_truth"
    write_text(truth / "vocabulary.csv", ["0,Bark,/m/0", "1,Dog,/m/1", "2,Rain,/m/2", "3,Wind,/m/3"])
    dev = {"100": (("Bark", "Dog"), "train"), "101": (("Rain",), "train"), "102": (("Dog",), "val")}
    evaluation = {"100": ("Rain", "Dog"), "201": ("Bark", "Dog")}
    lines = [f'{name},"{",".join(labels)}","/m/0",{split}' for name, (labels, split) in dev.items()]
    write_text(truth / "dev.csv", ["fname,labels,mids,split", *lines])
    lines = [f'{name},"{",".join(labels)}","/m/0"' for name, labels in evaluation.items()]
    write_text(truth / "eval.csv", ["fname,labels,mids", *lines])
    for name, (labels, _) in dev.items():
        write_audio(root / "FSD50K.dev_audio" / f"{name}.wav", labels)
    for name, labels in evaluation.items():
        write_audio(root / "FSD50K.eval_audio" / f"{name}.wav", labels)


def gtzan(root, folder="genres", suffix="wav"):
    for name in GTZAN_NAMES:
        write_audio(root / folder / f"{name}.{suffix}", [name.split("/")[0]])
    for part, indices in GTZAN_LISTS.items():
        write_text(root / f"{part}_filtered.txt", [f"{GTZAN_NAMES[index]}.wav" for index in indices])


def speech_commands(root):
    for name in COMMANDS:
        write_audio(root / name, [name.split("/")[0]])
    write_audio(root / "_background_noise_" / "white_noise.wav", ["none of them"])
    write_text(root / "README.md", ["Speech Commands"])
    for part in ("validation", "testing"):
        write_text(root / f"{part}_list.txt", [name for name, listed in COMMANDS.items() if listed == part])


def voxceleb1(root, parents=("wav", "wav")):
    """`parents` are the folders of the speakers who train and of those in the trials."""
    for name in UTTERANCES:
        speaker = name.split("/")[0]
        write_audio(root / parents[speaker >= "id10270"] / name, [speaker])
    write_text(root / "iden_split.txt", [f"{index % 3 + 1} {name}" for index, name in enumerate(UTTERANCES)])
    first, second, third = UTTERANCES[6], UTTERANCES[8], UTTERANCES[9]
    write_text(root / "veri_test.txt", [f"1 {first} {second}", f"0 {first} {third}"])


def urbansound8k(root):
    lines = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for index, label in enumerate(("siren", "dog_bark") * 10):
        fold, name = index // 2 + 1, f"{100 + index}-8-0-0.wav"
        # Times in the recording the clip was cut from, beyond its own end.
        lines.append(f"{name},{100 + index},58.5,62.5,1,{fold},{8 - 5 * (index % 2)},{label}")
        write_audio(root / "audio" / f"fold{fold}" / name, [label])
    write_text(root / "metadata" / "UrbanSound8K.csv", lines)


def openmic2018(root):
    lines = [f"{key},{instrument},{value},3" for key, instrument, value in OPENMIC_RELEVANCE]
    write_text(root / "openmic-2018-aggregated-labels.csv", ["sample_key,instrument,relevance,num_responses", *lines])
    write_text(root / "class-map.json", [json.dumps(OPENMIC_CLASSES)])
    write_text(root / "partitions" / "split01_train.csv", OPENMIC_KEYS[:2])
    write_text(root / "partitions" / "split01_test.csv", OPENMIC_KEYS[2:])
    for key in OPENMIC_KEYS:
        heard = [instrument for clip, instrument, value in OPENMIC_RELEVANCE if clip == key and value >= 0.5]
        write_audio(root / "audio" / key[:3] / f"{key}.ogg", heard or ["none of them"], seconds=0.5)


def write_openmic_npz(root, pickled):
    """The npz file with the same labels instead of the csv file; `pickled` as it is published."""
    (root / "openmic-2018-aggregated-labels.csv").unlink()
    shape = (len(OPENMIC_KEYS), len(OPENMIC_CLASSES))
    values, known = np.full(shape, 0.5), np.zeros(shape, bool)
    for key, instrument, value in OPENMIC_RELEVANCE:
        where = OPENMIC_KEYS.index(key), OPENMIC_CLASSES[instrument]
        values[where], known[where] = value, True
    keys = np.array(OPENMIC_KEYS, dtype=object if pickled else None)
    np.savez(root / "openmic-2018.npz", X=np.zeros((3, 10, 128), int), Y_true=values, Y_mask=known, sample_key=keys)


EPIC_SEGMENTS = {
    "train": [("P01_01_0", "P01_01", 0.1, 0.35, "water"), ("P01_01_1", "P01_01", 0.5, 0.625, "footstep")],
    "validation": [("P02_03_0", "P02_03", 0.2, 0.4, "footstep")],
}
EPIC_FILES = {"P01_01": "audio/kitchen/P01_01.flac", "P02_03": "P02/audio/P02_03.wav"}


def epic_sounds(root):
    sound = {video: 0.01 * np.ones(RATE) for video in EPIC_FILES}
    for split, segments in EPIC_SEGMENTS.items():
        lines = ["annotation_id,participant_id,video_id,start_timestamp,stop_timestamp,description,class,class_id"]
        for name, video, start, stop, label in segments:
            lines.append(f"{name},{name[:3]},{video},00:00:{start:06.3f},00:00:{stop:06.3f},,{label},5")
            sound[video][round(start * RATE) : round(stop * RATE)] = tones([label], stop - start)
        write_text(root / f"EPIC_Sounds_{split}.csv", lines)
    for video, name in EPIC_FILES.items():
        (root / name).parent.mkdir(parents=True)
        soundfile.write(root / name, sound[video], RATE)


LAYOUTS = {
    "esc50": esc50,
    "fsd50k": fsd50k,
    "gtzan": gtzan,
    "speech_commands_v1": speech_commands,
    "speech_commands_v2": speech_commands,
    "voxceleb1": voxceleb1,
    "urbansound8k": urbansound8k,
    "openmic2018": openmic2018,
    "epic_sounds": epic_sounds,
}


def refused(call, *expected):
    with pytest.raises(DataError) as error:
        call()
    assert [part for part in expected if part not in str(error.value)] == [], str(error.value)
