"""Files that no recorder writes, and how much of a file is decoded."""

import io
import tracemalloc

import numpy as np
import pytest
import soundfile
from hypotheses import examples, hypothesis, some
from sounds import tone

from peft_audio.data import BadAudioError, Clip, FeatureCache, extract_features, load_clip, load_waveform


def wav(waveform, rate=16000, kind="WAV"):
    """The bytes of a file."""
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format=kind)
    return file.getvalue()


def with_rate(content, rate):
    """A WAV file's bytes with this sampling rate in its header."""
    return content[:24] + rate.to_bytes(4, "little") + content[28:]


@pytest.mark.parametrize("rate", [0, 1, 999, 1_000_001, 2**31])
def test_a_rate_that_no_sound_has_is_refused(rate):
    with pytest.raises(ValueError, match="sampling rate of .* Hz in its header|unreadable"):
        load_waveform(with_rate(wav(tone("low")), rate), 16000)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("rate", [0, 1])
def test_such_files_are_left_out_where_that_is_asked_for(rate, num_workers, tmp_path):
    for name, content in (("a.wav", wav(tone("low"))), ("b.wav", with_rate(wav(tone("low")), rate))):
        (tmp_path / name).write_bytes(content)
    clips = [Clip(name, tmp_path / name, ("x",)) for name in ("a.wav", "b.wav")]
    cache = FeatureCache(tmp_path / "cache", sampling_rate=16000, num_workers=num_workers)
    with pytest.raises(BadAudioError, match=f"b.wav: has a sampling rate of {rate} Hz"):
        cache.compute(clips)
    assert list(cache.compute(clips, skip_bad_files=True)) == ["a.wav"]


def test_channels_that_cancel_are_told_from_silence():
    wave = 0.5 * np.sin(np.arange(8000) / 5)
    with pytest.raises(ValueError, match="channels cancel"):
        load_waveform(wav(np.stack([wave, -wave], axis=1)), 16000)
    with pytest.raises(ValueError, match="^silent$"):
        load_waveform(wav(np.zeros((8000, 2))), 16000)


@examples(60)
@hypothesis.given(
    rate=some.sampled_from([1000, 8000, 11025, 22050, 44100, 48000, 96000]),
    target=some.sampled_from([8000, 16000, 44100]),
    seconds=some.floats(0.3, 3.0),
    max_seconds=some.floats(0.05, 3.0),
    start=some.floats(0.0, 0.2),
    channels=some.integers(1, 3),
    kind=some.sampled_from(["WAV", "FLAC"]),
)
def test_a_cut_clip_is_the_front_of_the_whole_one(rate, target, seconds, max_seconds, start, channels, kind):
    noise = 0.1 * np.random.default_rng(0).normal(size=(round(seconds * rate), channels))
    content = wav(noise, rate, kind)
    whole = load_waveform(content, target, start=start)
    cut = load_clip(Clip("a", content, ("x",), start=start), target, max_seconds=max_seconds)
    assert len(cut) == min(len(whole), round(max_seconds * target))
    np.testing.assert_allclose(cut, whole[: len(cut)], atol=1e-5)


def peak_megabytes(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def test_a_file_may_be_named_by_text(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(tone("low", 1)))
    expected = load_waveform(path, 8000)
    assert np.array_equal(load_waveform(str(path), 8000), expected)
    assert np.array_equal(load_clip(Clip("a", str(path), ("x",)), 8000), expected)
    with pytest.raises(ValueError, match="no such file"):
        load_waveform(str(tmp_path / "b.wav"), 8000)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_no_more_is_decoded_than_is_asked_for(kind, tmp_path):
    path = tmp_path / "long"
    with soundfile.SoundFile(path, "w", 48000, 2, format=kind) as file:
        for _ in range(20):  # minutes
            file.write(np.tile(tone("low", 60, 48000)[:, None], 2))
    clip = Clip("a", path, ("x",), start=600)
    assert peak_megabytes(lambda: load_clip(clip, 16000, max_seconds=5)) < 20
    assert peak_megabytes(lambda: load_waveform(path, 16000, stop=5)) < 20


def test_all_of_a_file_takes_little_more_than_one_channel_of_it(tmp_path):
    with soundfile.SoundFile(tmp_path / "wide.wav", "w", 16000, 16) as file:
        for _ in range(5):
            file.write(np.tile(tone("low", 60)[:, None], 16))
    one_channel = 4 * 5 * 60 * 16000 / 1e6
    assert peak_megabytes(lambda: load_waveform(tmp_path / "wide.wav", 16000)) < 4 * one_channel + 40


@pytest.mark.parametrize("frames", [0, 2**36 - 1])
def test_a_header_that_promises_more_than_there_is(frames):
    wave = tone("low")
    content = bytearray(wav(wave, kind="FLAC"))
    content[21] = content[21] & 0xF0 | frames >> 32  # of a FLAC file: 36 bits with the number of samples, 0 if unknown
    content[22:26] = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    with pytest.raises(ValueError, match="unreadable .* convert it"):
        load_waveform(bytes(content), 16000)
    np.testing.assert_allclose(load_waveform(bytes(content), 16000, max_seconds=0.1), wave[:1600], atol=1e-4)


def test_a_clip_that_is_silent_as_far_as_it_is_heard():
    content = wav(np.concatenate([np.zeros(16000), tone("low", 1)]))
    with pytest.raises(ValueError, match=r"^silent in its first 0.5 s \(max_seconds\)$"):
        load_waveform(content, 16000, max_seconds=0.5)
    with pytest.raises(ValueError, match="^silent$"):
        load_waveform(wav(np.zeros(8000)), 16000, max_seconds=5)
    assert load_waveform(content, 16000, max_seconds=1.5).shape == (24000,)


def test_a_clip_may_be_longer_than_what_is_heard_of_it_and_shorter_than_needed():
    with pytest.raises(ValueError, match="too short"):
        load_waveform(wav(tone("low", 1)), 16000, min_seconds=2, max_seconds=0.5)
    assert load_waveform(wav(tone("low", 3)), 16000, min_seconds=2, max_seconds=0.5).shape == (8000,)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_lengths_that_no_clip_has_are_no_fault_of_the_files(value):
    clip = Clip("a", wav(tone("low")), ("x",))
    for call in (load_clip, extract_features):
        with pytest.raises(ValueError, match=f"max_seconds must be a number above 0, or None, got {value}") as error:
            call([clip] if call is extract_features else clip, 16000, max_seconds=value)
        assert not isinstance(error.value, BadAudioError)
    assert load_clip(clip, 16000, max_seconds=1e308).shape == (8000,)
