import numpy as np
import pytest
import synthetic_sounds as sounds


ALL_SOURCES = sounds.SOURCES | sounds.HELD_OUT_SOURCES
ALL_PATTERNS = tuple(sounds.PATTERNS) + tuple(sounds.HELD_OUT_PATTERNS)


@pytest.mark.parametrize("source", sorted(ALL_SOURCES))
def test_every_source_is_finite_and_audible_with_a_pattern_of_each_kind(source):
    patterns = sounds.compatible_patterns(source, ALL_PATTERNS)
    for pattern in {patterns[0], patterns[-1]}:
        waveform = sounds.render_dry(source, pattern, np.random.default_rng(1))
        assert waveform.shape == (sounds.CLIP_SAMPLES,) and waveform.dtype == np.float32
        assert np.isfinite(waveform).all()
        assert np.abs(waveform).max() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("pattern", ALL_PATTERNS)
def test_every_pattern_shapes_a_sustained_source(pattern):
    waveform = sounds.render_dry("white_noise", pattern, np.random.default_rng(2))
    steady = sounds.render_dry("white_noise", "steady", np.random.default_rng(2))
    assert np.isfinite(waveform).all() and np.abs(waveform).max() == pytest.approx(1, abs=1e-4)
    assert pattern == "steady" or not np.allclose(waveform, steady)


def test_clips_stay_within_their_level_and_length():
    rng = np.random.default_rng(3)
    for _ in range(60):
        clip = sounds.generate_any(rng, level=(-30.0, -6.0)).waveform
        assert clip.dtype == np.float32 and sounds.SAMPLING_RATE <= len(clip) <= sounds.CLIP_SAMPLES
        peak = 20 * np.log10(np.abs(clip).max())
        assert -45 < peak <= -6 + 1e-3


def test_the_seed_alone_decides_the_clip():
    first, second, other = (sounds.generate_any(np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert first.source == second.source and first.pattern == second.pattern
    np.testing.assert_array_equal(first.waveform, second.waveform)
    assert len(first.waveform) != len(other.waveform) or not np.array_equal(first.waveform, other.waveform)


def test_two_clips_of_one_class_differ():
    rng = np.random.default_rng(6)
    first, second = (sounds.generate("bell", "single", rng, whole=True).waveform for _ in range(2))
    assert np.abs(np.corrcoef(first, second)[0, 1]) < 0.5


def test_there_are_many_sources_and_none_is_both_trained_on_and_held_out():
    assert len(sounds.SOURCES) >= 48 and len(sounds.PATTERNS) >= 8
    assert not set(sounds.SOURCES) & set(sounds.HELD_OUT_SOURCES)
    assert not set(sounds.PATTERNS) & set(sounds.HELD_OUT_PATTERNS)


def test_pretraining_never_draws_a_held_out_source_or_pattern():
    rng = np.random.default_rng(7)
    drawn = [sounds.generate_any(rng) for _ in range(40)]
    assert {sound.source for sound in drawn} <= set(sounds.SOURCES)
    assert {sound.pattern for sound in drawn} <= set(sounds.PATTERNS)


def test_a_steady_event_is_refused():
    with pytest.raises(ValueError, match="`pattern` must be one that event sources such as 'bell' take, got 'steady'"):
        sounds.render_dry("bell", "steady", np.random.default_rng(0))


@pytest.mark.parametrize("names", [("trombone", "steady"), ("bell", "waltz")])
def test_an_unknown_name_is_refused_with_the_known_ones(names):
    with pytest.raises(ValueError, match="must be one of .*, got '(trombone|waltz)'"):
        sounds.render_dry(*names, np.random.default_rng(0))


def test_background_noise_follows_the_signal_to_noise_ratio():
    power = {}
    for snr in (0.0, 40.0):
        rng = np.random.default_rng(8)
        clip = sounds.generate("beep", "single", rng, snr=(snr, snr), whole=True).waveform
        power[snr] = np.median(clip**2) / np.max(clip**2)  # most of the clip is background
    assert power[0.0] > 100 * power[40.0]
