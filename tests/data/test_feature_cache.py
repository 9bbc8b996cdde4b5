import os
import pickle
import resource
import shutil
import struct
import time
import tracemalloc

import numpy as np
import psutil
import pytest
import soundfile
from caches import OtherRecorder, Recorder, assert_same, entries, write_clips
from safetensors.numpy import load_file
from sounds import EXTRACTORS, tone
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor

from peft_audio.data import (
    BadAudioError,
    Clip,
    FeatureCache,
    decoding,
    extract_features,
    feature_cache,
    feature_entries,
    load_waveform,
)


# What comes out


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("name", ["ast", "wav2vec2", "whisper"])
def test_features_are_those_of_extract_features(tmp_path, name, num_workers):
    extractor = EXTRACTORS.get(name, lambda: Wav2Vec2FeatureExtractor(return_attention_mask=True))()
    clips = write_clips(tmp_path, 4, 0.3)
    clips[1] = Clip("bytes", clips[1].source.read_bytes(), ("x",))
    expected, _ = extract_features(clips, extractor, max_seconds=0.25)
    cache = FeatureCache(tmp_path / "cache", extractor, max_seconds=0.25, num_workers=num_workers)
    for _ in range(2):
        features = cache.compute(clips)
        assert_same(features, expected)
        assert_same(pickle.loads(pickle.dumps(features)), expected)
        assert len(features) == 4
        assert "bytes" in features and "1.wav" not in features
        assert features.skipped == {}
        with pytest.raises(KeyError):
            features["1.wav"]


@pytest.mark.parametrize("rate", [16000, 8000])
def test_without_a_feature_extractor_there_are_waveforms(tmp_path, rate):
    [clip] = write_clips(tmp_path, 1, 0.5)
    features = FeatureCache(tmp_path / "cache", sampling_rate=rate, max_seconds=0.25).compute([clip])
    assert list(features["0.wav"]) == ["waveform"]
    np.testing.assert_array_equal(features["0.wav"]["waveform"], load_waveform(clip.source, rate)[: rate // 4])


def test_outputs_are_stored_whatever_their_layout_in_memory(tmp_path):
    class Odd(Recorder):
        def __call__(self, waveform, sampling_rate, return_tensors):
            values = np.arange(6).reshape(1, 2, 3)
            return {"transposed": values.mT, "number": [7], "big_endian": values.astype(">i4"), "flag": [True]}

    features = FeatureCache(tmp_path / "cache", Odd(), num_workers=0).compute(write_clips(tmp_path, 1))["0.wav"]
    assert features["transposed"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert features["big_endian"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (features["number"].tolist(), features["flag"].tolist()) == (7, True)


# What is found again


def test_a_second_run_computes_and_writes_nothing(tmp_path, recorder):
    clips = write_clips(tmp_path / "audio")
    cache = FeatureCache(tmp_path / "cache", recorder, num_workers=0)
    expected = dict(cache.compute(clips))
    assert recorder.calls() == 6
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    assert_same(FeatureCache(str(tmp_path / "cache"), Recorder()).compute(clips), expected)
    assert recorder.calls() == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == before


def test_a_renamed_file_is_found_and_a_changed_one_is_not(tmp_path, recorder):
    clips = write_clips(tmp_path / "audio", 3)
    cache = FeatureCache(tmp_path / "cache", recorder, num_workers=0)
    expected = dict(cache.compute(clips))
    assert recorder.calls() == 3
    renamed = Clip("renamed", clips[0].source.rename(tmp_path / "elsewhere.wav"), ("y",))
    assert_same(cache.compute([renamed]), {"renamed": expected["0.wav"]})
    assert recorder.calls() == 0

    status = clips[1].source.stat()
    soundfile.write(clips[1].source, tone("high", 0.1), 16000)
    os.utime(clips[1].source, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a copy that keeps times does
    assert clips[1].source.stat().st_size == status.st_size
    features = cache.compute(clips[1:])
    assert recorder.calls() == 1
    np.testing.assert_array_equal(features["1.wav"]["input_values"][0], load_waveform(clips[1].source, 16000))
    assert_same({"2.wav": features["2.wav"]}, {"2.wav": expected["2.wav"]})


def test_clips_with_the_same_audio_share_an_entry(tmp_path, recorder):
    clips = write_clips(tmp_path / "audio", 2)
    twin = Clip("twin", clips[0].source.read_bytes(), ("y",))
    features = FeatureCache(tmp_path / "cache", recorder, num_workers=0).compute([*clips, twin])
    assert recorder.calls() == len(entries(tmp_path)) == 2
    np.testing.assert_array_equal(features["twin"]["input_values"], features["0.wav"]["input_values"])


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: {"feature_extractor": Recorder(gain=2.0)},
        lambda patch: {"feature_extractor": OtherRecorder()},
        lambda patch: {"feature_extractor": None},
        lambda patch: {"max_seconds": 0.05},
        lambda patch: {"min_seconds": 0.05},
        lambda patch: patch.setattr(feature_cache, "FORMAT", 99) or {},
        lambda patch: patch.setattr(feature_cache.metadata, "version", lambda package: "99") or {},
        lambda patch: patch.setattr(Recorder, "sampling_rate", 8000) or {},
    ],
    ids=["setting", "class", "no extractor", "max_seconds", "min_seconds", "format", "versions", "sampling rate"],
)
def test_a_changed_setting_reads_no_entry_and_harms_none(tmp_path, recorder, change):
    clips = write_clips(tmp_path / "audio", 2)
    arguments = {"feature_extractor": recorder, "num_workers": 0}
    old = FeatureCache(tmp_path / "cache", **arguments).compute(clips)
    expected = dict(old)
    with pytest.MonkeyPatch.context() as patch:
        changed = change(patch)
        FeatureCache(tmp_path / "cache", **arguments | changed).compute(clips)
    assert recorder.calls() == (2 if changed.get("feature_extractor", recorder) is None else 4)
    assert len(entries(tmp_path)) == 4
    assert_same(FeatureCache(tmp_path / "cache", **arguments).compute(clips), expected)
    assert recorder.calls() == 0
    assert len(list((tmp_path / "cache").glob("*/settings.json"))) == 2


def test_a_feature_extractor_that_was_saved_and_loaded_finds_its_entries(tmp_path):
    clips = write_clips(tmp_path / "audio", 2)
    extractor = ASTFeatureExtractor(num_mel_bins=36, max_length=46)
    FeatureCache(tmp_path / "cache", extractor, max_seconds=1).compute(clips)
    extractor.save_pretrained(tmp_path / "model")
    loaded = ASTFeatureExtractor.from_pretrained(tmp_path / "model")
    FeatureCache(tmp_path / "cache", loaded, max_seconds=1.0).compute(clips)
    assert len(entries(tmp_path)) == 2


# Segments


@pytest.mark.parametrize(
    ("suffix", "subtype", "rate"),
    [
        ("wav", "PCM_16", 44100),
        ("flac", "PCM_16", 44100),
        ("ogg", "VORBIS", 44100),
        ("mp3", None, 44100),
        ("wav", "GSM610", 8000),  # in which libsndfile cannot seek
    ],
)
def test_a_segment_is_that_part_of_the_whole(tmp_path, suffix, subtype, rate):
    path = tmp_path / f"long.{suffix}"
    soundfile.write(path, tone("middle", 3.0, rate), rate, subtype=subtype)
    whole, _ = soundfile.read(path, dtype="float32")
    for start, stop in ((0.0, 0.5), (1.25, 2.0), (2.5, None), (2.5, 9.0)):
        part = load_waveform(path, rate, start=start, stop=stop)
        expected = whole[round(start * rate) : None if stop is None else round(stop * rate)]
        np.testing.assert_allclose(part, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("start", "stop", "reason"),
    [
        (-1.0, 2.0, "0 <= start < stop (seconds), got -1.0 and 2.0"),
        (1.0, 1.0, "0 <= start < stop"),
        (float("nan"), None, "0 <= start < stop"),
        (7.0, 8.0, "empty (no samples from 7 s on)"),
        (0.9, 2.0, "too short (0.100 s, the model needs 0.200 s)"),
    ],
)
def test_impossible_segments_are_bad_audio(tmp_path, start, stop, reason):
    [clip] = write_clips(tmp_path, 1, 1.0)
    clip = Clip("part", clip.source, ("x",), start=start, stop=stop)
    features = FeatureCache(tmp_path / "cache", min_seconds=0.2).compute([clip], skip_bad_files=True)
    assert reason in features.skipped["part"]


def test_of_a_long_file_only_the_segment_is_decoded(tmp_path):
    path, size = tmp_path / "hour.wav", 3600 * 32000
    second = (3e4 * tone("low", 1.0)).astype("<i2").tobytes()
    header = (
        b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    )
    with path.open("wb") as file:
        file.write(header + b"data" + struct.pack("<I", size))
        file.seek(44 + size - 32000)
        file.write(second)
    tracemalloc.start()
    try:
        waveform = load_waveform(path, 16000, start=3598.5)
        assert tracemalloc.get_traced_memory()[1] < 1e6  # an hour takes 230 MB
    finally:
        tracemalloc.stop()
    expected = np.frombuffer(bytes(16000) + second, "<i2") / 2**15
    np.testing.assert_array_equal(waveform, expected.astype(np.float32))


def test_segments_are_entries_of_a_file_that_is_hashed_once(tmp_path, recorder, monkeypatch):
    [clip] = write_clips(tmp_path / "audio", 1, 1.0)
    times = [(0.0, 0.5), (0.5, 0.75), (0.5, 1), (0.75, None), (0, 0.25)]
    parts = [Clip(f"{start}-{stop}", clip.source, ("x",), start=start, stop=stop) for start, stop in times]
    hashed = []
    sha256 = feature_cache.sha256
    monkeypatch.setattr(feature_cache, "sha256", lambda source: hashed.append(source) or sha256(source))
    features = FeatureCache(tmp_path / "cache", recorder, num_workers=0).compute([clip, *parts])
    assert hashed.count(clip.source) == 1
    assert recorder.calls() == len(entries(tmp_path)) == 1 + len(parts)
    whole = features["0.wav"]["input_values"][0]
    for part in parts:
        samples = slice(round(part.start * 16000), round((part.stop or 1) * 16000))
        np.testing.assert_array_equal(features[part.name]["input_values"][0], whole[samples])
    assert_same(extract_features(parts, recorder)[0], {part.name: features[part.name] for part in parts})


# Bad files, the disk


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_files_are_reported_as_by_extract_features_and_not_kept(tmp_path, caplog, num_workers):
    clips = write_clips(tmp_path, 8)
    soundfile.write(clips[1].source, np.zeros(8000), 16000)
    clips[2].source.write_bytes(b"")
    shutil.copy(clips[2].source, clips[3].source)
    clips[4].source.unlink()
    clips[5].source.unlink()
    soundfile.write(clips[6].source, tone("low", 0.05), 16000)
    extractor = Wav2Vec2FeatureExtractor()
    with pytest.raises(BadAudioError) as expected:
        extract_features(clips, extractor, min_seconds=0.1)
    assert len(expected.value.bad_files) == 6
    cache = FeatureCache(tmp_path / "cache", extractor, min_seconds=0.1, num_workers=num_workers)
    for _ in range(2):
        with pytest.raises(BadAudioError) as error:
            cache.compute(clips)
        assert str(error.value) == str(expected.value)
        assert error.value.bad_files == expected.value.bad_files
    assert len(entries(tmp_path)) == 2
    features = cache.compute(clips, skip_bad_files=True)
    assert list(features) == ["0.wav", "7.wav"]
    assert features.skipped == expected.value.bad_files
    assert "Left out 6 of 8" in caplog.text

    soundfile.write(clips[1].source, tone("low", 0.1), 16000)
    assert "1.wav" in cache.compute(clips, skip_bad_files=True)


def test_a_file_that_changes_while_it_is_read_is_not_stored(tmp_path, monkeypatch):
    [clip] = write_clips(tmp_path, 1)

    def load_and_change(*arguments):
        waveform = decoding.load_clip(*arguments)
        soundfile.write(clip.source, tone("high", 0.2), 16000)
        return waveform

    cache = FeatureCache(tmp_path / "cache", num_workers=0)
    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "load_clip", load_and_change)
        with pytest.raises(BadAudioError, match="0.wav: changed while it was being read"):
            cache.compute([clip])
    assert not entries(tmp_path)
    assert cache.compute([clip])["0.wav"]["waveform"].size == 3200


def test_a_file_that_could_not_be_hashed_is_not_stored(tmp_path, monkeypatch):
    clips = write_clips(tmp_path, 3)
    clips[1].source.unlink()
    sha256 = feature_cache.sha256

    def fail_once(source):
        if source == clips[0].source:
            raise PermissionError
        return sha256(source)

    cache = FeatureCache(tmp_path / "cache", num_workers=0)
    monkeypatch.setattr(feature_cache, "sha256", fail_once)
    features = cache.compute(clips, skip_bad_files=True)
    assert list(features) == ["2.wav"]
    assert features.skipped["0.wav"].startswith("changed while") and features.skipped["1.wav"] == "no such file"
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_of_the_feature_extractor_is_no_bad_file_and_stops(tmp_path, recorder, num_workers):
    class Failing(Recorder):
        def __call__(self, *arguments, **options):
            super().__call__(*arguments, **options)
            raise ValueError("too few mel bins")

    children = set(psutil.Process().children())
    cache = FeatureCache(tmp_path / "cache", Failing(), num_workers=num_workers)
    with pytest.raises(RuntimeError, match=r"^\d\.wav: no features(.|\n)*ValueError: too few mel bins"):
        cache.compute(write_clips(tmp_path, 100), skip_bad_files=True)
    assert set(psutil.Process().children()) <= children
    assert recorder.calls() == 1 if num_workers == 0 else recorder.calls() < 100


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_failing_disk_is_an_error_that_names_the_folder_and_keeps_what_is_complete(tmp_path, num_workers):
    clips = write_clips(tmp_path / "audio", 8, 0.1)
    soundfile.write(clips[7].source, tone("low", 1.0), 16000)
    cache = FeatureCache(tmp_path / "cache", num_workers=num_workers)
    children = set(psutil.Process().children())
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, hard))  # the long clip needs 64000 bytes
    try:
        with pytest.raises(OSError, match="Cannot write features: File too large.*Free space") as error:
            cache.compute(clips)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    assert str(tmp_path / "cache") in str(error.value)
    assert set(psutil.Process().children()) <= children
    complete = entries(tmp_path)
    assert 3 <= len(complete) <= 7
    assert all(load_file(path)["waveform"].shape == (1600,) for path in complete)
    assert not list((tmp_path / "cache").glob("*/partial/*"))
    assert len(cache.compute(clips)) == 8


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Cannot write features.*file"):
        FeatureCache(tmp_path / "file").compute(write_clips(tmp_path, 1))


def test_what_killed_runs_left_is_removed_and_what_others_write_is_not(tmp_path):
    clips = write_clips(tmp_path / "audio", 1)
    cache = FeatureCache(tmp_path / "cache")
    cache.compute(clips)
    [partial] = (tmp_path / "cache").glob("*/partial")
    for name, age in (("old", 2 * feature_entries.STALE_SECONDS), ("new", 0)):
        (partial / name).write_bytes(b"")
        os.utime(partial / name, (time.time() - age,) * 2)
    cache.compute(write_clips(tmp_path / "audio", 2))
    assert [path.name for path in partial.iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"max_seconds": 0}, "max_seconds must be above 0 and not below min_seconds (0.0), got 0."),
        ({"max_seconds": 1, "min_seconds": 2}, "not below min_seconds (2), got 1."),
        ({"feature_extractor": Recorder(), "sampling_rate": 8000}, "16000 Hz, or left out, got 8000."),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, arguments, expected):
    with pytest.raises(ValueError) as error:
        FeatureCache(tmp_path, **arguments)
    assert expected in str(error.value)


def test_a_setting_without_json_is_refused_and_an_array_is_compared(tmp_path, recorder):
    clips = write_clips(tmp_path, 1)
    with pytest.raises(TypeError, match="value of type object"):
        FeatureCache(tmp_path / "cache", Recorder(gain=object())).compute(clips)
    for gain in (np.ones(1600), np.full(1600, 2.0), np.ones(1600)):
        FeatureCache(tmp_path / "cache", Recorder(gain), num_workers=0).compute(clips)
    assert recorder.calls() == 2
