"""Entries of the feature cache that are damaged, or another clip's, are never used: they are computed again, or refused."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
import soundfile
from caches import Recorder, assert_same, write_clips
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save
from sounds import tone

from peft_audio.data import Clip, FeatureCache, feature_cache


def header(data):
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def with_header(data, change):
    fields = header(data)
    change(fields)
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + struct.unpack("<Q", data[:8])[0] :]


def flip(data, position, bit=0):
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


def other_values(value):
    return lambda data: save({"input_values": np.full((1, 1600), value, np.float32)})


DAMAGE = {
    "empty": lambda data: b"",
    "cut in the length": lambda data: data[:5],
    "half": lambda data: data[: len(data) // 2],
    "a byte less": lambda data: data[:-1],
    "a byte more": lambda data: data + b"\0",
    "zeros": lambda data: bytes(len(data)),
    "zeros after the header": lambda data: data[:500] + bytes(len(data) - 500),
    "a flip in the length": lambda data: flip(data, 0),
    "a flip in the header": lambda data: flip(data, 12),
    "a flip in the values": lambda data: flip(data, len(data) - 3),
    "the lowest bit": lambda data: flip(data, len(data) - 4),
    "NaN": lambda data: data[:-4] + struct.pack("<f", np.nan),
    "another shape": lambda data: with_header(data, lambda h: h["input_values"].update(shape=[1600, 1])),
    "another dtype": lambda data: with_header(data, lambda h: h["input_values"].update(dtype="I32")),
    "a dtype without numpy": lambda data: with_header(data, lambda h: h["input_values"].update(dtype="F8_E4M3")),
    "another name": lambda data: with_header(data, lambda h: h.update(input_features=h.pop("input_values"))),
    "no checksum": lambda data: with_header(data, lambda h: h.pop("__metadata__")),
    "a cache of before": other_values(0.5),
    "a pickle": lambda data: b"\x80\x04." + data,
}


class Cache:
    """Features of three clips, and what they were at first."""

    def __init__(self, folder, **options):
        self.clips = write_clips(folder / "audio", 3)
        self.cache = FeatureCache(folder / "cache", Recorder(), num_workers=0, **options)
        self.features = self.cache.compute(self.clips)
        self.expected = dict(self.features)

    def damage(self, name, change):
        path = self.features.path(name)
        path.write_bytes(change(path.read_bytes()))
        return path


@pytest.fixture
def cached(tmp_path, recorder):
    cached = Cache(tmp_path)
    recorder.calls()
    return cached


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_computed_again_with_a_warning_when_a_run_begins(cached, recorder, damage, caplog):
    path = cached.damage("1.wav", damage)
    features = cached.cache.compute(cached.clips)
    assert recorder.calls() == 1
    assert_same(features, cached.expected)
    [message] = warnings(caplog)
    assert "features in 1 of 3 files are damaged and are computed again" in message and str(path) in message
    cached.cache.compute(cached.clips)
    assert recorder.calls() == 0 and len(warnings(caplog)) == 1


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_computed_again_with_a_warning_while_a_run_reads(cached, recorder, damage, caplog):
    path = cached.damage("1.wav", damage)
    assert_same(cached.features, cached.expected)
    assert recorder.calls() == 1
    [message] = warnings(caplog)
    assert message.startswith(f"{path}: the features of '1.wav' have been damaged") and "computed again" in message
    assert_same(cached.features, cached.expected)
    assert recorder.calls() == 0 and len(warnings(caplog)) == 1


@pytest.mark.parametrize("remove", [os.unlink, lambda path: shutil.rmtree(path.parents[1])])
def test_a_removed_entry_is_computed_again(cached, recorder, remove, caplog):
    remove(cached.features.path("1.wav"))
    assert_same(cached.features, cached.expected)
    assert recorder.calls() >= 1 and "1.wav" in caplog.text


def test_an_entry_in_the_place_of_another_is_noticed(cached, recorder, caplog):
    first, second = (cached.features.path(name) for name in ("0.wav", "1.wav"))
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0]), first.write_bytes(contents[1])
    assert_same(cached.features, cached.expected)
    assert recorder.calls() == 2 and len(warnings(caplog)) == 2


def test_an_entry_of_a_run_with_other_settings_is_noticed(cached, recorder, tmp_path, caplog):
    other = FeatureCache(tmp_path / "cache", Recorder(gain=2.0), num_workers=0).compute(cached.clips)
    shutil.copy(other.path("1.wav"), cached.features.path("1.wav"))
    recorder.calls()
    assert_same(cached.features, cached.expected)
    assert recorder.calls() == 1 and len(warnings(caplog)) == 1
    shutil.copy(other.path("1.wav"), cached.features.path("1.wav"))
    assert_same(cached.cache.compute(cached.clips), cached.expected)


def test_entries_may_move_with_their_folder(cached, recorder, tmp_path):
    shutil.move(tmp_path / "cache", tmp_path / "moved")
    assert_same(FeatureCache(tmp_path / "moved", Recorder()).compute(cached.clips), cached.expected)
    assert recorder.calls() == 0


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_anywhere_never_changes_what_is_read(cached, data):
    path = cached.features.path("1.wav")
    content = path.read_bytes()
    change = data.draw(st.sampled_from(["flip", "truncate", "extend", "overwrite", "repeat"]))
    # Half of all changes are made in the header, which is short.
    place = data.draw(st.one_of(st.integers(0, 300), st.integers(0, len(content) - 1)))
    other = data.draw(st.binary(min_size=1, max_size=50))
    damaged = {
        "flip": flip(content, place, data.draw(st.integers(0, 7))),
        "truncate": content[:place],
        "extend": content + other,
        "overwrite": (content[:place] + other + content[place + len(other) :])[: len(content)],
        "repeat": content[:place] * 2 + content[place:],
    }[change]
    path.write_bytes(damaged)
    try:
        assert_same(cached.features, cached.expected)
    finally:
        path.write_bytes(content)


# What cannot be computed again


def test_features_whose_audio_has_changed_are_refused(cached, recorder):
    soundfile.write(cached.clips[1].source, tone("high", 0.1), 16000)
    path = cached.damage("1.wav", lambda data: flip(data, len(data) - 3))
    before = path.read_bytes()
    with pytest.raises(
        OSError, match=r"(?s)1\.wav.*damaged.*cannot be computed again: the audio file has changed.*compute"
    ):
        cached.features["1.wav"]
    cached.clips[2].source.unlink()
    cached.damage("2.wav", lambda data: b"")
    with pytest.raises(OSError, match=r"2\.wav.*cannot be computed again"):
        cached.features["2.wav"]
    assert path.read_bytes() == before and recorder.calls() == 0
    assert_same({"0.wav": cached.features["0.wav"]}, {"0.wav": cached.expected["0.wav"]})


def test_audio_that_was_only_touched_is_the_same_audio(cached, recorder):
    os.utime(cached.clips[1].source, (0, 0))
    cached.damage("1.wav", lambda data: b"")
    assert_same(cached.features, cached.expected)


def test_clips_from_memory_are_computed_again_when_a_run_begins_and_refused_later(cached, recorder):
    clip = Clip("bytes", cached.clips[0].source.read_bytes() + b"\0", ("x",))
    features = cached.cache.compute([clip])
    expected = dict(features)
    features.path("bytes").write_bytes(b"")
    with pytest.raises(OSError, match="'bytes'.*cannot be computed again: the audio came as bytes"):
        features["bytes"]
    assert_same(cached.cache.compute([clip]), expected)


def test_a_full_disk_is_no_reason_to_stop(cached, monkeypatch, caplog):
    cached.damage("1.wav", lambda data: b"")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache, "write_entry", full)
    assert_same(cached.features, cached.expected)
    assert "could not be written again" in caplog.text and "No space left" in caplog.text


def test_what_is_computed_again_has_the_layout_of_what_is_read(tmp_path, recorder):
    class Odd(Recorder):
        def __call__(self, waveform, sampling_rate, return_tensors):
            values = np.arange(6).reshape(1, 2, 3)
            return {"transposed": values.mT, "number": [7], "big_endian": values.astype(">i4"), "flag": [True]}

    features = FeatureCache(tmp_path / "cache", Odd(), num_workers=0).compute(write_clips(tmp_path, 1))
    expected = features["0.wav"]
    features.path("0.wav").unlink()
    assert_same({"a": features["0.wav"]}, {"a": expected})
    assert {name: array.dtype for name, array in features["0.wav"].items()} == {
        name: array.dtype for name, array in expected.items()
    }


def test_entries_of_versions_without_checksums_are_left_alone(cached):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_cache, "FORMAT", 1)
        before = cached.cache.compute(cached.clips)
    for name in before:
        before.path(name).write_bytes(save(load_file(before.path(name))))
    files = {before.path(name): before.path(name).read_bytes() for name in before}
    again = cached.cache.compute(cached.clips)
    assert again.folder != before.folder
    assert_same(again, cached.expected)
    assert all(path.read_bytes() == content for path, content in files.items())
