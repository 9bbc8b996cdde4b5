import re
from pathlib import Path

import layouts
import numpy as np
import pytest
import soundfile
from data_sets import DATA_SETS, epic_sounds
from layouts import FREQUENCIES, LAYOUTS, RATE, refused, tones

from peft_audio.data import Trial, choose_splits, load_waveform, read_trials


VOXCELEB_SPLITS = ("train", "validation", "test")

# Options, and what must come out: labels, fold and split by clip name.
READINGS = {
    "esc50": (
        {},
        {
            f"{fold}-{100 + target}-A-{target}.wav": ((label,), str(fold), None)
            for fold in range(1, 6)
            for target, label in enumerate(("dog", "rooster", "cat"))
        },
    ),
    "fsd50k": (
        {},
        {
            "FSD50K.dev_audio/100.wav": (("Bark", "Dog"), None, "train"),
            "FSD50K.dev_audio/101.wav": (("Rain",), None, "train"),
            "FSD50K.dev_audio/102.wav": (("Dog",), None, "validation"),
            "FSD50K.eval_audio/100.wav": (("Rain", "Dog"), None, "test"),
            "FSD50K.eval_audio/201.wav": (("Bark", "Dog"), None, "test"),
        },
    ),
    "gtzan": (
        {"split": "filtered"},
        {
            "blues/blues.00000.wav": (("blues",), None, "train"),
            "blues/blues.00001.wav": (("blues",), None, "train"),
            "blues/blues.00002.wav": (("blues",), None, "validation"),
            "blues/blues.00003.wav": (("blues",), None, "test"),
            "jazz/jazz.00000.wav": (("jazz",), None, "train"),
            "jazz/jazz.00001.wav": (("jazz",), None, "train"),
            "jazz/jazz.00002.wav": (("jazz",), None, "validation"),
            "jazz/jazz.00003.wav": (("jazz",), None, "test"),
        },
    ),
    "speech_commands_v1": (
        {},
        {
            "bed/0.wav": (("bed",), None, "train"),
            "bed/1.wav": (("bed",), None, "validation"),
            "yes/0.wav": (("yes",), None, "train"),
            "yes/1.wav": (("yes",), None, "test"),
        },
    ),
    "voxceleb1": (
        {},
        {
            name: ((name[:7],), None, VOXCELEB_SPLITS[index % 3])
            for index, name in enumerate(sorted(layouts.UTTERANCES))
        },
    ),
    "urbansound8k": (
        {},
        {
            f"{100 + index}-8-0-0.wav": (("siren" if index % 2 == 0 else "dog_bark",), str(index // 2 + 1), None)
            for index in range(20)
        },
    ),
    "openmic2018": (
        {},
        {
            "000046_3840": (("piano", "voice"), None, "train"),
            "000135_483840": (("drums",), None, "train"),
            "001138_0": ((), None, "test"),
        },
    ),
    "epic_sounds": (
        {},
        {
            "P01_01_0": (("water",), None, "train"),
            "P01_01_1": (("footstep",), None, "train"),
            "P02_03_0": (("footstep",), None, "validation"),
        },
    ),
}
READINGS["speech_commands_v2"] = READINGS["speech_commands_v1"]


def write(name, root):
    LAYOUTS[name](root)
    return root


def described(table):
    return {clip.name: (clip.labels, clip.fold, clip.split) for clip in table.clips}


def heard(clip):
    """The labels whose tones sound in a clip's part of its file."""
    start, stop = round(clip.start * RATE), None if clip.stop is None else round(clip.stop * RATE)
    wave, rate = soundfile.read(clip.source, start=start, stop=stop)
    assert rate == RATE
    amplitudes = {
        label: abs(np.mean(wave * np.exp(-2j * np.pi * frequency * np.arange(wave.size) / rate)))
        for label, frequency in FREQUENCIES.items()
    }
    return {label for label, amplitude in amplitudes.items() if amplitude > 0.06}  # a tone of amplitude 0.2 gives 0.1


# Reading


# A folder of one's own has tests of its own (test_audio_data.py).
each_published = pytest.mark.parametrize("name", [name for name in DATA_SETS if name != "audiofolder"])


@each_published
def test_every_clip_has_its_labels_fold_split_and_sound(tmp_path, name):
    options, expected = READINGS[name]
    table = DATA_SETS[name].read(write(name, tmp_path), **options)
    assert described(table) == expected
    for clip in table.clips:
        assert heard(clip) - {"none of them"} == set(clip.labels)


@each_published
def test_the_table_of_data_sets_says_what_their_readers_give(tmp_path, name):
    row = DATA_SETS[name]
    table = row.read(str(write(name, tmp_path)))
    assert table.multi_label == row.multi_label
    assert row.title in table.origin
    assert {clip.fold for clip in table.clips} - {None} == {str(fold + 1) for fold in range(row.folds or 0)}
    assert {clip.split for clip in table.clips} - {None} == set(row.splits)


@each_published
def test_the_clips_can_be_divided_into_training_and_test(tmp_path, name):
    row = DATA_SETS[name]
    table = row.read(write(name, tmp_path))
    splits = choose_splits(table, fold="1" if row.folds else None)
    if row.folds:
        assert {clip.fold for clip in splits.test} == {"1"}
    else:
        assert {clip.split for clip in splits.test} == {"validation" if name == "epic_sounds" else "test"}
    assert {clip.name for clip in splits.clips} == {clip.name for clip in table.clips}


@each_published
def test_no_audio_is_read(tmp_path, name):
    table = DATA_SETS[name].read(write(name, tmp_path))
    for clip in table.clips:
        clip.source.write_bytes(b"")
    assert DATA_SETS[name].read(tmp_path) == table


def test_esc10_is_the_marked_part_of_esc50(tmp_path):
    table = DATA_SETS["esc50"].read(write("esc50", tmp_path), subset="esc10")
    assert len(table.clips) == 10
    assert {clip.labels for clip in table.clips} == {("dog",), ("rooster",)}


def test_segments_have_their_times_in_seconds(tmp_path):
    table = DATA_SETS["epic_sounds"].read(write("epic_sounds", tmp_path))
    times = [(clip.start, clip.stop) for clip in table.clips]
    assert times == [pytest.approx(pair) for pair in ((0.1, 0.35), (0.5, 0.625), (0.2, 0.4))]
    for clip in table.clips:
        wave = load_waveform(clip.source, RATE, start=clip.start, stop=clip.stop)
        np.testing.assert_allclose(wave, tones(clip.labels, clip.stop - clip.start), atol=1e-4)


def test_hours_and_minutes_count(tmp_path):
    layouts.epic_sounds(tmp_path)
    edit("EPIC_Sounds_train.csv", "00:00:00.350", "01:02:03.466")(tmp_path)
    assert epic_sounds.read(tmp_path).clips[0].stop == pytest.approx(3600 + 120 + 3.466)


@pytest.mark.parametrize("pickled", [None, False])
def test_instruments_nobody_was_asked_about_are_unknown(tmp_path, pickled):
    layouts.openmic2018(tmp_path)
    if pickled is not None:
        layouts.write_openmic_npz(tmp_path, pickled)
    table = DATA_SETS["openmic2018"].read(tmp_path)
    assert [(clip.labels, clip.unknown) for clip in table.clips] == [
        (("piano", "voice"), ("drums",)),
        (("drums",), ("voice",)),
        ((), ("drums", "piano")),
    ]


# GTZAN


def test_each_fold_has_its_share_of_every_genre(tmp_path):
    clips = DATA_SETS["gtzan"].read(write("gtzan", tmp_path), folds=5).clips
    for fold in range(1, 6):
        assert sorted(clip.labels[0] for clip in clips if clip.fold == str(fold)) == ["blues"] * 2 + ["jazz"] * 2


def test_folds_depend_on_the_seed_but_not_on_the_order_of_the_files(tmp_path, monkeypatch):
    read = DATA_SETS["gtzan"].read
    first = described(read(write("gtzan", tmp_path)))
    assert described(read(tmp_path, seed=1)) != first
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, pattern: reversed(list(glob(path, pattern))))
    assert described(read(tmp_path)) == first


@pytest.mark.parametrize("options", [{}, {"split": "filtered"}])
def test_the_original_au_files_get_the_same_folds_and_splits(tmp_path, options):
    layouts.gtzan(tmp_path / "wav")
    layouts.gtzan(tmp_path / "au", "genres_original", "au")
    wav, au = (DATA_SETS["gtzan"].read(tmp_path / kind, **options) for kind in ("wav", "au"))
    assert {name.replace(".wav", ".au"): rest for name, rest in described(wav).items()} == described(au)


# VoxCeleb1


@pytest.mark.parametrize("parents", [("wav", "wav"), ("dev/wav", "test/wav")])
def test_verification_trains_on_the_speakers_who_are_in_no_trial(tmp_path, parents):
    layouts.voxceleb1(tmp_path, parents)
    table = DATA_SETS["voxceleb1"].read(tmp_path, split="verification")
    assert described(table) == {name: ((name[:7],), None, "train") for name in layouts.UTTERANCES if name < "id10270"}
    assert read_trials(tmp_path) == [
        Trial(True, *(tmp_path / parents[1] / layouts.UTTERANCES[index] for index in (6, 8))),
        Trial(False, *(tmp_path / parents[1] / layouts.UTTERANCES[index] for index in (6, 9))),
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("2 a/b/c.wav d/e/f.wav", ["veri_test.txt line 3", "1 (same speaker) or 0", "'2'"]),
        ("1 a/b/c.wav", ["veri_test.txt line 3", "is_same path path", "'1 a/b/c.wav'"]),
        ("1 a/b/c.wav d/e/f.wav", ["2 audio files are missing", "wav/a/b/c.wav", "wav/d/e/f.wav"]),
    ],
)
def test_bad_trials_are_named(tmp_path, line, expected):
    layouts.voxceleb1(tmp_path)
    with (tmp_path / "veri_test.txt").open("a") as file:
        file.write(line + "\n")
    refused(lambda: read_trials(tmp_path), *expected)


# Missing pieces


def remove(*names):
    """Removes the files of these names below a folder; * stands for anything."""

    def change(root):
        files = [file for name in names for file in root.glob(name)]
        assert files
        for file in files:
            file.unlink()

    return change


def edit(name, old, new):
    """Replaces the first match of the pattern `old` in a file."""

    def change(root):
        text = (root / name).read_text()
        changed = re.sub(old, new, text, count=1, flags=re.MULTILINE)
        assert changed != text
        (root / name).write_text(changed)

    return change


ESC_CSV, US_CSV, MIC_CSV = "meta/esc50.csv", "metadata/UrbanSound8K.csv", "openmic-2018-aggregated-labels.csv"
DEV, EVAL, VOCABULARY = (f"FSD50K.ground_truth/{name}.csv" for name in ("dev", "eval", "vocabulary"))
TRAIN, VALIDATION = "EPIC_Sounds_train.csv", "EPIC_Sounds_validation.csv"
FILTERED, VERIFICATION = {"split": "filtered"}, {"split": "verification"}


@pytest.mark.parametrize(
    ("name", "options", "change", "expected"),
    [
        ("esc50", {}, remove(ESC_CSV), [ESC_CSV, "no such file"]),
        ("esc50", {}, edit(ESC_CSV, "category", "kind"), [ESC_CSV, "column category is missing", "kind"]),
        ("esc50", {"subset": "esc10"}, edit(ESC_CSV, "esc10", "x"), ["column esc10 is missing"]),
        ("esc50", {"subset": "esc20"}, None, ["subset", "None, 'esc10'", "'esc20'"]),
        ("esc50", {}, edit(ESC_CSV, ",dog,", ",,"), [f"{ESC_CSV} line 2", "category is empty"]),
        ("esc50", {}, edit(ESC_CSV, "(?s)wav.*", "wav,1,0"), [f"{ESC_CSV} line 2", "category is empty"]),
        ("esc50", {}, edit(ESC_CSV, "(?s)\n.*", "\n"), ["no clips found"]),
        ("esc50", {}, edit(ESC_CSV, "1-101-A-1", "1-100-A-0"), ["1 clips are listed twice: '1-100-A-0.wav'"]),
        ("esc50", {}, remove("audio/1-100*"), ["1 audio files are missing: 'audio/1-100-A-0.wav'. "]),
        (
            "esc50",
            {},
            remove("audio/*"),
            ["15 audio files", "1-100-A-0.wav', 'audio/1-101-A-1.wav'", "wav' and 12 more"],
        ),
        ("fsd50k", {}, remove(DEV), [DEV, "no such file"]),
        ("fsd50k", {}, remove(EVAL), [EVAL, "no such file"]),
        ("fsd50k", {}, remove(VOCABULARY), [VOCABULARY, "no such file"]),
        ("fsd50k", {}, edit(VOCABULARY, "^1,Dog.*", "1,Dog"), [f"{VOCABULARY} line 2", "index,label,mid", "'1,Dog'"]),
        ("fsd50k", {}, edit(VOCABULARY, "(?s).*", ""), [VOCABULARY, "is empty"]),
        ("fsd50k", {}, edit(DEV, ",split", ",part"), [DEV, "column split is missing"]),
        ("fsd50k", {}, edit(DEV, "Rain", "Hail"), [f"{DEV} line 3", "not in vocabulary.csv: 'Hail'"]),
        ("fsd50k", {}, edit(DEV, "val$", "eval"), [f"{DEV} line 4", "train or val", "'eval'"]),
        ("fsd50k", {}, remove("*eval_audio/201*"), ["1 audio files", "'FSD50K.eval_audio/201.wav'"]),
        ("gtzan", {}, lambda root: (root / "genres").rename(root / "g"), ["has no folder genres or genres_original"]),
        ("gtzan", {}, remove("genres/*/*"), ["no clips found"]),
        ("gtzan", {}, remove("genres/jazz/*9.wav"), ["folds must be 2 to 9", "got 10"]),
        ("gtzan", {"folds": 1}, None, ["folds must be 2 to 10", "got 1"]),
        ("gtzan", {"split": "official"}, None, ["split", "None, 'filtered'", "'official'"]),
        ("gtzan", FILTERED, remove("valid_*"), ["valid_filtered.txt", "no such file", "jongpillee"]),
        ("gtzan", FILTERED, remove("genres/blues/*3.wav"), ["1 tracks of the filtered split", "'blues/blues.00003'"]),
        ("gtzan", FILTERED, edit("test_filtered.txt", "00003", "00001"), ["test_filtered.txt line 1", "train_filt"]),
        ("speech_commands_v1", {}, remove("validation_list.txt"), ["validation_list.txt", "v1", "v0.01.tar.gz"]),
        ("speech_commands_v2", {}, remove("testing_list.txt"), ["testing_list.txt", "v2", "v0.02.tar.gz"]),
        ("speech_commands_v2", {}, remove("yes/1.wav"), ["1 listed audio files are missing: 'yes/1.wav'"]),
        ("speech_commands_v2", {}, edit("testing_list.txt", ".*", "bed/1.wav"), ["'bed/1.wav' is in validation_list"]),
        ("voxceleb1", {}, remove("iden_split.txt"), ["iden_split.txt", "no such file"]),
        ("voxceleb1", {}, edit("iden_split.txt", "^1", "4"), ["iden_split.txt line 1", "1 (train), 2", "'4'"]),
        ("voxceleb1", {}, edit("iden_split.txt", "^1 ", ""), ["iden_split.txt line 1", "subset path"]),
        ("voxceleb1", {}, edit("iden_split.txt", "00002", "00001"), ["iden_split.txt line 2", "listed already"]),
        ("voxceleb1", {}, remove("wav/id10002/*/*1.wav"), ["2 audio files", "'wav/id10002/video0/00001.wav'"]),
        ("voxceleb1", {}, lambda root: (root / "wav").rename(root / "w"), ["has no folder wav, nor dev/wav"]),
        ("voxceleb1", {"split": "x"}, None, ["'identification', 'verification'", "'x'"]),
        ("voxceleb1", VERIFICATION, remove("veri_test.txt"), ["veri_test.txt", "no such file"]),
        ("voxceleb1", VERIFICATION, remove("wav/id1000*/*/*"), ["no clips found"]),
        ("urbansound8k", {}, remove(US_CSV), [US_CSV, "no such file"]),
        ("urbansound8k", {}, edit(US_CSV, ",class$", ",label"), [US_CSV, "column class is missing"]),
        ("urbansound8k", {}, edit(US_CSV, ",1,8,", ",7,8,"), ["1 audio files", "'audio/fold7/100-8-0-0.wav'"]),
        ("openmic2018", {}, remove(MIC_CSV), [MIC_CSV, "no such file"]),
        ("openmic2018", {}, remove("class-map.json"), ["class-map.json", "no such file"]),
        ("openmic2018", {}, edit("class-map.json", "2", "3"), ["class-map.json", "0, 1, 2"]),
        ("openmic2018", {}, edit("class-map.json", ".*", "[1]"), ["class-map.json", "0, 1, 2"]),
        ("openmic2018", {}, remove("partitions/*test.csv"), ["split01_test.csv", "no such file"]),
        ("openmic2018", {}, edit(MIC_CSV, "relevance", "x"), [MIC_CSV, "column relevance is missing"]),
        ("openmic2018", {}, edit(MIC_CSV, "piano", "oboe"), [f"{MIC_CSV} line 2", "'oboe'", "class-map.json"]),
        ("openmic2018", {}, edit(MIC_CSV, "0.49", "nan"), [f"{MIC_CSV} line 5", "0 to 1", "'nan'"]),
        ("openmic2018", {}, edit(MIC_CSV, "0.49", "high"), [f"{MIC_CSV} line 5", "0 to 1", "'high'"]),
        ("openmic2018", {}, edit(MIC_CSV, "001138_0.*", ""), ["1 clips of the partitions have no labels: '001138_0'"]),
        ("openmic2018", {}, edit(MIC_CSV, "001138_0", "9"), ["1 clips of the partitions have no labels"]),
        ("openmic2018", {}, edit("partitions/split01_train.csv", "0001.*", ""), ["in no partition", "000135_483840"]),
        ("openmic2018", {}, remove("audio/001/*"), ["1 audio files are missing", "audio/001/001138_0.ogg"]),
        ("epic_sounds", {}, remove(TRAIN), [TRAIN, "no such file"]),
        ("epic_sounds", {}, remove(VALIDATION), [VALIDATION, "no such file"]),
        ("epic_sounds", {}, edit(TRAIN, "stop_timestamp", "end"), [TRAIN, "column stop_timestamp is missing"]),
        ("epic_sounds", {}, edit(TRAIN, "00:00:00.100", "0.1"), [f"{TRAIN} line 2", "start_timestamp", "'0.1'"]),
        ("epic_sounds", {}, edit(TRAIN, "00:00:00.350", "00:00:00.100"), [f"{TRAIN} line 2", "0.1 s to 0.1 s"]),
        ("epic_sounds", {}, remove("audio/*/*.flac"), ["1 audio files are missing: 'audio/P01_01.wav'"]),
        ("epic_sounds", {}, remove("audio/*/*.flac", "*/audio/*.wav"), ["has no .wav or .flac file below audio/"]),
    ],
)
def test_a_missing_piece_is_named(tmp_path, name, options, change, expected):
    root = write(name, tmp_path / "copy")
    if change:
        change(root)
    refused(lambda: DATA_SETS[name].read(root, **options), str(root), "is published as", *expected)


@each_published
def test_a_missing_folder_is_named(tmp_path, name):
    read = DATA_SETS[name].read
    refused(lambda: read(tmp_path / "absent"), "absent", "no such folder", DATA_SETS[name].title)


def test_a_list_that_is_no_text_is_named(tmp_path):
    layouts.speech_commands(tmp_path)
    (tmp_path / "testing_list.txt").write_bytes(b"\xff\xfe\x00")
    refused(lambda: DATA_SETS["speech_commands_v2"].read(tmp_path), "testing_list.txt", "not a text file in UTF-8")
