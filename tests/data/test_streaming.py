"""Data sets of the Hub as streams: what comes out, in which order, and how far is read."""

import io

import datasets
import fsspec
import layouts
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from layouts import RATE, refused, tones
from torch.utils.data import DataLoader
from transformers import Wav2Vec2FeatureExtractor

from peft_audio.data import BadAudioError, StreamedClips, prepare_stream


NAMES = ("dog", "cat", "rooster")
CLASS_LABEL = datasets.ClassLabel(names=list(NAMES))


def encoded(label, seconds=0.1):
    file = io.BytesIO()
    soundfile.write(file, tones([label], seconds), RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def write_parquet(root, values=(0, 1, 2, 0, 1, 2), feature=CLASS_LABEL, sounds=None):
    """A data set of two parquet files with half of the clips each, as the Hub stores them."""
    sounds = sounds or [encoded(NAMES[index % 3]) for index in range(len(values))]
    rows = [
        {"audio": {"bytes": sound, "path": f"{index}.wav"}, "label": value, "other": 0}
        for index, (sound, value) in enumerate(zip(sounds, values, strict=True))
    ]
    schema = datasets.Features(
        {"audio": datasets.Audio(), "label": feature, "other": datasets.Value("int64")}
    ).arrow_schema
    half = len(rows) // 2
    root.mkdir(parents=True, exist_ok=True)
    for part, shard in enumerate((rows[:half], rows[half:])):
        pq.write_table(pa.Table.from_pylist(shard, schema=schema), root / f"train-{part}.parquet")
    return str(root)


def test_a_stream_gives_waveforms_and_labels(tmp_path):
    stream = StreamedClips(write_parquet(tmp_path), "train", RATE)
    assert stream.labels == list(NAMES)
    items = list(stream)
    assert [item["labels"] for item in items] == [0, 1, 2, 0, 1, 2]
    for item in items:
        assert item["waveform"].dtype == np.float32
        np.testing.assert_allclose(item["waveform"], tones([NAMES[item["labels"]]]), atol=1e-6)
    assert len(list(stream)) == 6


def test_a_stream_is_resampled(tmp_path):
    (item, *_) = StreamedClips(write_parquet(tmp_path), "train", 2 * RATE)
    assert item["waveform"].shape == (round(0.1 * 2 * RATE),)


def test_a_stream_reads_no_further_than_it_is_asked(tmp_path):
    folder = write_parquet(tmp_path)
    (tmp_path / "train-1.parquet").write_bytes(b"not fetched")
    stream = iter(StreamedClips(folder, "train", RATE))
    assert [next(stream)["labels"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(Exception, match="(?i)parquet"):
        next(stream)


@pytest.mark.parametrize("remote", [False, True])
def test_audio_files_are_streamed_too(tmp_path, remote):
    for label in NAMES:
        layouts.write_audio(tmp_path / label / "a.wav", [label])
    if remote:  # files that have an address but no path, as on the Hub
        fsspec.filesystem("memory").put(str(tmp_path), "/sounds", recursive=True)
        stream = StreamedClips("audiofolder", "train", RATE, data_files={"train": "memory://sounds/**"})
    else:
        stream = StreamedClips(str(tmp_path), "train", RATE)
    assert stream.labels == sorted(NAMES)
    items = list(stream)
    assert sorted(item["labels"] for item in items) == [0, 1, 2]
    for item in items:
        np.testing.assert_allclose(item["waveform"], tones([stream.labels[item["labels"]]]), atol=1e-4)


@pytest.mark.parametrize("feature", [CLASS_LABEL, datasets.Value("string")])
def test_lists_of_labels_become_vectors(tmp_path, feature):
    values = [[2, 0], [], [1], [0], [0], [0]]
    if feature is not CLASS_LABEL:
        values = [[NAMES[index] for index in row] for row in values]
    folder = write_parquet(tmp_path, values, datasets.List(feature))
    targets = [item["labels"] for item in StreamedClips(folder, "train", RATE, labels=list(NAMES))]
    assert targets[0].dtype == np.float32
    assert np.stack(targets[:3]).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("feature", [CLASS_LABEL, datasets.Value("string")])
def test_labels_can_be_given_in_another_order(tmp_path, feature):
    values = [2, 1, 0, 0, 0, 0] if feature is CLASS_LABEL else ["rooster", "cat", "dog", "dog", "dog", "dog"]
    folder = write_parquet(tmp_path, values, feature)
    stream = StreamedClips(folder, "train", RATE, labels=["cat", "dog", "rooster"])
    assert [item["labels"] for item in stream] == [2, 0, 1, 1, 1, 1]


def test_workers_share_the_files(tmp_path):
    stream = StreamedClips(write_parquet(tmp_path, [0, 0, 0, 1, 1, 1], sounds=[encoded("dog")] * 6), "train", RATE)
    items = list(DataLoader(stream, batch_size=None, num_workers=2))
    assert sorted(int(item["labels"]) for item in items) == [0, 0, 0, 1, 1, 1]


def test_shuffling_depends_on_seed_and_epoch(tmp_path):
    samples = [160 + 40 * index for index in range(12)]
    for index, size in enumerate(samples):
        layouts.write_audio(tmp_path / NAMES[index % 3] / f"{index}.wav", ["dog"], size / RATE)

    def order(seed, epoch=0):
        stream = StreamedClips(str(tmp_path), "train", RATE, shuffle_buffer=6, seed=seed)
        stream.set_epoch(epoch)
        return [item["waveform"].size for item in stream]

    first = order(0)
    assert first == order(0)
    assert sorted(first) == samples != first
    assert first != order(1) and first != order(0, epoch=1)


def test_unusable_clips_are_named_or_left_out(tmp_path, caplog):
    sounds = [encoded("dog"), encoded("dog")[:20], b"", encoded("dog", 0.01), encoded("cat"), encoded("cat")]
    folder = write_parquet(tmp_path, sounds=sounds)
    with pytest.raises(BadAudioError, match=r"1 of 2 audio files cannot be used:\n  train\[1\] 1\.wav: unreadable"):
        list(StreamedClips(folder, "train", RATE))
    stream = StreamedClips(folder, "train", RATE, min_seconds=0.05, skip_bad_files=True)
    assert [item["labels"] for item in stream] == [0, 1, 2]
    assert [message in caplog.text for message in ("[1] 1.wav", "[2] 2.wav: empty", "[3] 3.wav: too short")] == [
        True
    ] * 3


def test_bad_columns_and_labels_of_a_stream_are_named(tmp_path):
    folder = write_parquet(tmp_path / "a")
    refused(lambda: StreamedClips(folder, "train", RATE, audio_column="x"), folder, "audio_column 'x'", "'audio', 'l")
    refused(lambda: StreamedClips(folder, "train", RATE, label_column="y"), folder, "label_column 'y'")
    refused(lambda: list(StreamedClips(folder, "train", RATE, labels=["dog"])), "row 1 of split 'train'", "has 1 in")
    folder = write_parquet(tmp_path / "b", [0, -1, 0, 0, 0, 0])
    refused(lambda: list(StreamedClips(folder, "train", RATE)), "row 1 of split 'train'", "has -1 in")
    folder = write_parquet(tmp_path / "c", [*"xyx", None, "x", "x"], datasets.Value("string"))
    refused(lambda: StreamedClips(folder, "train", RATE), folder, "does not declare its labels", "`labels`")
    refused(lambda: list(StreamedClips(folder, "train", RATE, labels=["x", "y"])), "row 3", "has None in")


def test_clips_of_a_stream_are_cut(tmp_path):
    stream = StreamedClips(write_parquet(tmp_path), "train", 2 * RATE, max_seconds=0.05)
    assert {item["waveform"].shape for item in stream} == {(RATE // 10,)}
    with pytest.raises(ValueError, match="max_seconds must be a number above 0, or None, got nan"):
        StreamedClips(str(tmp_path), "train", RATE, max_seconds=float("nan"))


def test_one_of_several_configurations_is_streamed(tmp_path):
    folder = write_parquet(tmp_path, [0, 1, 2, 2, 2, 2])
    parts = [{"split": "train", "path": "train-0.parquet"}, {"split": "test", "path": "train-0.parquet"}]
    others = [{"split": "train", "path": "train-1.parquet"}]
    configs = [{"config_name": "first", "data_files": parts}, {"config_name": "second", "data_files": others}]
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE)
    data = prepare_stream(folder, extractor, config_name="first", max_seconds=0.05)
    items = list(data.train)
    assert sorted(item["labels"] for item in items) == [0, 1, 2]
    assert {item["input_values"].shape for item in items} == {(RATE // 20,)}
