import collections
import io

import datasets
import numpy as np
import pytest
import soundfile
import torch
from sounds import EXTRACTORS, LABELS, tone, write_tones
from tiny import make, make_ast, make_wav2vec2, shared_path
from transformers import ASTFeatureExtractor, Wav2Vec2Config, Wav2Vec2FeatureExtractor

from peft_audio.data import (
    AudioCollator,
    BadAudioError,
    Clip,
    ClipTable,
    DataError,
    FeatureDataset,
    Splits,
    choose_splits,
    extract_features,
    load_waveform,
    minimum_seconds,
    read_audiofolder,
    read_hub_dataset,
)


def write_wav(path, wave, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate)
    return path


def metadata(folder, text):
    """A folder with a metadata.csv of this text and files a.wav to d.wav."""
    for name in "abcd":
        write_wav(folder / f"{name}.wav", tone("low", 0.1))
    (folder / "metadata.csv").write_text(text, encoding="utf-8")
    return folder


def names(clips):
    return [clip.name for clip in clips]


def clips_of(*labels, **fields):
    return [Clip(str(index), b"", tuple(text.split(";")), **fields) for index, text in enumerate(labels)]


# Reading


def test_class_folders_are_the_labels(tmp_path):
    for name in ("dog/a.wav", "dog/b.FLAC", "cat/c.ogg"):
        write_wav(tmp_path / name, tone("low"))
    (tmp_path / "dog" / "notes.txt").write_text("not audio")
    write_wav(tmp_path / ".cache" / "d.wav", tone("low"))
    table = read_audiofolder(tmp_path)
    assert {clip.name: clip.labels for clip in table.clips} == {
        "cat/c.ogg": ("cat",),
        "dog/a.wav": ("dog",),
        "dog/b.FLAC": ("dog",),
    }
    assert not table.multi_label


@pytest.mark.parametrize("with_metadata", [False, True])
def test_split_folders_are_the_splits(tmp_path, with_metadata):
    for split, label in (("train", "x"), ("train", "y"), ("valid", "x"), ("test", "y")):
        write_wav(tmp_path / split / label / "a.wav", tone("low"))
        if with_metadata:
            with (tmp_path / split / "metadata.csv").open("a") as file:
                file.write(("" if file.tell() else "file_name,label\n") + f"{label}/a.wav,{label}\n")
    splits = choose_splits(read_audiofolder(tmp_path))
    assert names(splits.train) == ["train/x/a.wav", "train/y/a.wav"]
    assert names(splits.validation) == ["valid/x/a.wav"]
    assert names(splits.test) == ["test/y/a.wav"]


def test_metadata_holds_labels_folds_and_splits(tmp_path):
    folder = metadata(tmp_path, '\ufefffile_name, label,fold,note\na.wav, "x; y;x",1.0,"one, two"\nb.wav,y,02,\n')
    table = read_audiofolder(folder)
    assert [(clip.name, clip.labels, clip.fold) for clip in table.clips] == [
        ("a.wav", ("x", "y"), "1"),
        ("b.wav", ("y",), "2"),
    ]
    assert table.multi_label


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["metadata.csv", "'file_name', 'label'", "none"]),
        ("path,label\na.wav,x\n", ["metadata.csv", "'file_name' is missing", "'path'"]),
        ("file_name;label\na.wav;x\n", ["'label' is missing", "separated by commas"]),
        ("file_name,label\n", ["metadata.csv", "lists no clips"]),
        ("file_name,label\na.wav,x\nb.wav,\n", ["line 3", "'label' is empty"]),
        ("file_name,label\na.wav,;\n", ["line 2", "';'"]),
        ("file_name,label,fold\na.wav,x,1\nb.wav,y\n", ["line 3", "'fold' is empty"]),
        ("file_name,label\na.wav,x\nb.wav,y\na.wav,y\n", ["line 4", "'a.wav'", "line 2"]),
        ("file_name,label\na.wav,x,y\n", ["line 2", "more values than columns"]),
    ],
)
def test_bad_metadata_is_named(tmp_path, text, expected):
    with pytest.raises(DataError) as error:
        read_audiofolder(metadata(tmp_path, text))
    assert all(part in str(error.value) for part in expected), str(error.value)


def test_metadata_in_another_encoding_is_named(tmp_path):
    (tmp_path / "metadata.csv").write_bytes("file_name,label\na.wav,é\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"metadata\.csv: not a comma-separated text file in UTF-8"):
        read_audiofolder(tmp_path)


def test_folders_without_labels_are_named(tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        read_audiofolder(tmp_path / "absent")
    with pytest.raises(DataError, match="neither a metadata.csv nor class folders"):
        read_audiofolder(tmp_path)
    write_wav(tmp_path / "loose.wav", tone("low"))
    with pytest.raises(DataError, match=r"'loose\.wav' lies in no class folder"):
        read_audiofolder(tmp_path)


@pytest.mark.parametrize("multi_label", [False, True])
def test_hub_data_set_is_listed_undecoded(monkeypatch, multi_label):
    file = io.BytesIO()
    soundfile.write(file, tone("low", 0.2), 16000, format="FLAC")
    label = datasets.ClassLabel(names=["no", "yes"])
    rows = datasets.Dataset.from_dict(
        {
            "sound": [{"bytes": file.getvalue(), "path": "a.flac"}] * 2,
            "kind": [[1, 0], []] if multi_label else [1, 0],
            "fold": [1, 2],
        },
        datasets.Features(
            {
                "sound": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
                "kind": datasets.List(label) if multi_label else label,
                "fold": datasets.Value("int32"),
            }
        ),
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: datasets.DatasetDict({"train": rows}))
    table = read_hub_dataset("some/data", None, "sound", "kind")
    assert [clip.labels for clip in table.clips] == ([("yes", "no"), ()] if multi_label else [("yes",), ("no",)])
    assert [clip.fold for clip in table.clips] == ["1", "2"]
    assert table.multi_label == multi_label
    assert load_waveform(table.clips[0].source, 16000).shape == (3200,)
    with pytest.raises(DataError, match="label_column 'label' is no column"):
        read_hub_dataset("some/data", None, "sound")


# Splitting


def test_a_fold_tests_and_the_rest_trains(tmp_path):
    splits = choose_splits(read_audiofolder(write_tones(tmp_path)), fold="2")
    assert {clip.fold for clip in splits.test} == {"2"}
    assert {clip.fold for clip in splits.train} == {"1", "3"}
    assert splits.labels == sorted(LABELS)


def test_random_split_keeps_the_share_of_every_class_and_depends_on_the_seed():
    table = ClipTable(clips_of(*["x"] * 20, *["y"] * 10), "data")
    splits = choose_splits(table, test_fraction=0.2, seed=1)
    assert collections.Counter(clip.labels[0] for clip in splits.test) == {"x": 4, "y": 2}
    assert not set(names(splits.train)) & set(names(splits.test))
    assert choose_splits(table, seed=1) == splits
    assert choose_splits(table, seed=2) != splits


def test_random_split_of_several_labels_leaves_each_label_something_to_learn_from():
    table = ClipTable(clips_of("rare;x", *["x;y"] * 8, "y;z", "z"), "data", multi_label=True)
    for seed in range(20):
        splits = choose_splits(table, test_fraction=0.3, seed=seed)
        assert splits.labels == ["rare", "x", "y", "z"]
        assert len(splits.test) == 3


def test_validation_tests_where_there_is_no_test():
    clips = clips_of("x", "y", split="train") + clips_of("x", split="dev")
    splits = choose_splits(ClipTable(clips, "data"))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (2, 0, 1)


@pytest.mark.parametrize(
    ("clips", "arguments", "expected"),
    [
        (clips_of("x", "y"), {"fold": "1"}, "data: fold 1 needs a column 'fold'"),
        (clips_of("x", "y", fold="1") + clips_of("x", fold="2"), {"fold": "9"}, "the folds are 1, 2"),
        (
            clips_of("x", "y", fold="1") + clips_of("z", fold="2"),
            {"fold": "2"},
            "'z' appears in the test clips but in",
        ),
        (clips_of("x", fold="1") + clips_of("x", fold="2"), {"fold": "2"}, "needs two labels or more"),
        (clips_of("x", "y", fold="1"), {"fold": "1"}, "no training clips"),
        (clips_of("x", "y", split="train") + clips_of("x", split="tets"), {}, "the split of '0' is 'tets'"),
        (clips_of("x", "y", split="test"), {}, "no training clips"),
        (clips_of("x", "x", "y"), {}, "'y' has a single clip"),
        (clips_of("x", "x", "y", "y"), {"test_fraction": 1.5}, "test_fraction must lie between 0 and 1, got 1.5"),
    ],
)
def test_impossible_splits_are_refused(clips, arguments, expected):
    with pytest.raises(DataError) as error:
        choose_splits(ClipTable(clips, "data"), **arguments)
    assert expected in str(error.value)


def test_a_random_split_of_data_with_folds_is_announced(caplog):
    choose_splits(ClipTable(clips_of(*"xxyy", fold="1"), "data"))
    assert "fold=N" in caplog.text


# Decoding


def test_waveforms_are_mono_at_the_rate_asked_for(tmp_path):
    left, right = tone("low", 1.0, 44100, seed=1), tone("low", 1.0, 44100, seed=2)
    path = write_wav(tmp_path / "a.wav", np.stack([left, right], axis=1), 44100)
    wave = load_waveform(path, 16000)
    assert wave.shape == (16000,)
    assert wave.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(wave))
    assert spectrum.argmax() == 250
    amplitude = np.abs(np.fft.rfft((left + right) / 2))[250] / 44100
    np.testing.assert_allclose(spectrum[250] / 16000, amplitude, rtol=0.01)
    np.testing.assert_array_equal(load_waveform(path.read_bytes(), 16000), wave)


def bad_files(folder):
    """A folder with one good file, and files that are bad in every way; their reasons by name."""
    write_wav(folder / "good.wav", tone("low", 0.5))
    write_wav(folder / "silent.wav", np.zeros(8000))
    write_wav(folder / "short.wav", tone("low", 0.05))
    write_wav(folder / "nothing.wav", np.zeros(0))
    soundfile.write(folder / "nan.wav", np.full(8000, np.nan), 16000, subtype="FLOAT")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is no audio at all")
    (folder / "broken.flac").write_bytes(b"fLaC" + bytes(100))
    return {
        "silent.wav": "silent",
        "short.wav": "too short (0.050 s, the model needs 0.175 s)",
        "nothing.wav": "empty (no samples)",
        "nan.wav": "not finite",
        "empty.wav": "empty (0 bytes)",
        "text.wav": "unreadable",
        "broken.flac": "unreadable",
        "absent.wav": "no such file",
    }


def test_all_bad_files_are_listed_with_their_reasons(tmp_path, caplog):
    reasons = bad_files(tmp_path)
    clips = [Clip(name, tmp_path / name, ("x",)) for name in ("good.wav", *reasons)]
    extractor = ASTFeatureExtractor(num_mel_bins=36, max_length=46)
    with pytest.raises(BadAudioError) as error:
        extract_features(clips, extractor, min_seconds=0.175)
    assert str(error.value).startswith("8 of 9 audio files cannot be used:")
    assert "set skip_bad_files" in str(error.value)
    assert list(error.value.bad_files) == list(reasons)
    for name, reason in reasons.items():
        assert reason in error.value.bad_files[name]
        assert name in str(error.value)

    features, left_out = extract_features(clips, extractor, min_seconds=0.175, skip_bad_files=True)
    assert list(features) == ["good.wav"]
    assert left_out == error.value.bad_files
    assert all(name in caplog.text for name in reasons)


def test_leaving_clips_out_may_leave_too_little():
    splits = Splits(clips_of("x", "y"), [Clip("t", b"", ("x",))])
    assert names(splits.without([]).train) == ["0", "1"]
    with pytest.raises(DataError, match="no test clips"):
        splits.without(["t"])


# Features


def test_features_are_what_the_extractor_returns(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone("low", 0.4))
    extractor = ASTFeatureExtractor(num_mel_bins=36, max_length=46)
    features, _ = extract_features([Clip("a", path, ("x",))], extractor)
    wave = load_waveform(path, 16000)
    expected = extractor(wave, sampling_rate=16000, return_tensors="np")["input_values"][0]
    assert features["a"]["input_values"].shape == (46, 36)
    np.testing.assert_allclose(features["a"]["input_values"], expected, rtol=0, atol=1e-6)


def test_long_clips_are_cut():
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    file = io.BytesIO()
    soundfile.write(file, tone("low", 1.0), 16000, format="WAV")
    features, _ = extract_features([Clip("a", file.getvalue(), ("x",))], extractor, max_seconds=0.25)
    assert features["a"]["input_values"].shape == (4000,)


def test_batches_are_padded_and_masked():
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    features = {
        name: {"input_values": np.ones(length, np.float32), "attention_mask": np.ones(length, np.int32)}
        for name, length in (("0", 4), ("1", 7))
    }
    dataset = FeatureDataset(clips_of("x", "y"), features, ["x", "y"])
    batch = AudioCollator(extractor)([dataset[0], dataset[1]])
    assert batch["input_values"].tolist() == [[1, 1, 1, 1, 0, 0, 0], [1] * 7]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0, 0], [1] * 7]
    assert batch["labels"].tolist() == [0, 1]
    assert batch["labels"].dtype == torch.int64


def test_several_labels_become_a_vector():
    clips = clips_of("z;x", "y")
    dataset = FeatureDataset(clips, {"0": {}, "1": {}}, ["x", "y", "z"], multi_label=True)
    assert dataset[0]["labels"].tolist() == [1, 0, 1]
    assert dataset[1]["labels"].tolist() == [0, 1, 0]
    assert dataset[0]["labels"].dtype == np.float32


def test_minimum_length_is_one_patch_or_one_frame():
    ast, wav2vec2 = make_ast(), make_wav2vec2()
    samples = round(16000 * minimum_seconds(ast.config, 16000))
    extractor = ASTFeatureExtractor(num_mel_bins=36, max_length=16)
    for wave, filled in ((tone("low", 1)[:samples], 16), (tone("low", 1)[: samples - 1], 15)):
        frames = extractor._extract_fbank_features(wave, max_length=16)
        assert (np.abs(frames).sum(axis=1) > 0).sum() == filled

    samples = round(16000 * minimum_seconds(wav2vec2.config, 16000))
    assert samples == 45  # kernels 10 and 8, strides 5 and 4
    assert wav2vec2(torch.randn(1, samples)).logits.shape == (1, 5)
    with pytest.raises(RuntimeError):
        wav2vec2(torch.randn(1, samples - 1))


def test_minimum_length_leaves_room_for_the_masks_of_specaugment():
    assert minimum_seconds(Wav2Vec2Config(mask_time_prob=0.0), 16000) == 400 / 16000
    assert minimum_seconds(Wav2Vec2Config(), 16000) == 3280 / 16000
    model = make_wav2vec2(mask_time_prob=0.5, mask_time_length=10).train()
    samples = round(16000 * minimum_seconds(model.config, 16000))
    model(torch.randn(2, samples))
    with pytest.raises(ValueError, match="mask_length"):
        model(torch.randn(2, samples - 1))


@pytest.mark.parametrize("mask", [{}, {"apply_spec_augment": True, "mask_time_prob": 0.5, "mask_time_length": 4}])
def test_minimum_length_of_filter_bank_models(mask):
    model = make("wav2vec2-bert", **mask).train()
    samples = round(16000 * minimum_seconds(model.config, 16000))
    extractor = EXTRACTORS["wav2vec2-bert"]()
    inputs = extractor(tone("low", 1)[:samples], sampling_rate=16000, return_tensors="pt")
    assert inputs["attention_mask"].tolist() == [[1] * (4 if mask else 1)]
    assert model(**inputs).logits.isfinite().all()
    if mask:
        shorter = extractor(tone("low", 1)[: samples - 320], sampling_rate=16000, return_tensors="pt")
        with pytest.raises(ValueError, match="mask_length"):
            model(**shorter)


def test_esc10_reads_as_five_equal_folds():
    table = read_audiofolder(shared_path("data/esc10"))
    assert collections.Counter(clip.fold for clip in table.clips) == dict.fromkeys("12345", 80)
    for fold in "12345":
        splits = choose_splits(table, fold)
        assert (len(splits.train), len(splits.test), len(splits.labels)) == (320, 80, 10)
    features, skipped = extract_features(splits.test[:3], ASTFeatureExtractor(num_mel_bins=36, max_length=46))
    assert not skipped
    assert {value["input_values"].shape for value in features.values()} == {(46, 36)}
