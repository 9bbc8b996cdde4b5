"""Augmentation: against the recipes' formulas, and the signal-to-noise ratios of noises whose parts can be told apart."""

from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from sounds import tone
from training.augmentation import (
    MusanNoise,
    SpecAugment,
    fit_length,
    mix_waveforms,
    noise_and_roll,
    random_crop,
    soft_target,
)
from transformers import ASTFeatureExtractor


RATE = 16000
SNR = {"noise": (0, 15), "music": (5, 15), "speech": (13, 20)}  # in dB


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("how", ["cut", "repeat", "pad"])
def test_a_long_clip_loses_its_end_without_a_generator_and_a_random_part_with_one(how):
    waveform = np.arange(10)
    assert fit_length(waveform, 4, how).tolist() == [0, 1, 2, 3]
    starts = {int(fit_length(waveform, 4, how, generator(seed))[0]) for seed in range(100)}
    assert starts == set(range(7))


@pytest.mark.parametrize(
    "how, expected", [("cut", [1, 2, 3]), ("repeat", [1, 2, 3, 1, 2, 3, 1]), ("pad", [1, 2, 3, 0, 0, 0, 0])]
)
def test_a_short_clip_becomes_what_is_asked_for(how, expected):
    waveform = np.array([1, 2, 3], dtype=np.float32)
    fitted = fit_length(torch.from_numpy(waveform), 7, how, generator())
    assert fitted.tolist() == expected and fitted.dtype == np.float32
    assert fit_length(np.array([[1, 2], [3, 4]]), 3, "repeat").tolist() == [[1, 2], [3, 4], [1, 2]]


@pytest.mark.parametrize(
    "waveform, num_samples, how, message",
    [([1], 2, "wrap", "how must be"), ([1], 0, "cut", "at least 1"), ([], 2, "pad", "no samples")],
)
def test_a_length_that_cannot_be_reached_is_refused(waveform, num_samples, how, message):
    with pytest.raises(ValueError, match=message):
        fit_length(np.array(waveform), num_samples, how)


def test_crops_are_uniform_contiguous_parts():
    rng, starts = generator(), Counter()
    for _ in range(3000):
        crop = random_crop(np.arange(6), 4, rng)
        assert np.diff(crop).tolist() == [1, 1, 1]
        starts[int(crop[0])] += 1
    assert set(starts) == {0, 1, 2} and min(starts.values()) > 900
    with pytest.raises(ValueError, match="crop of 7 samples"):
        random_crop(np.arange(6), 7, rng)


@pytest.mark.parametrize("length", [3, 5, 9])
def test_a_mixture_is_the_weighted_sum_without_means_at_the_length_of_the_first(length):
    first, second = generator(1).normal(1.0, size=5), generator(2).normal(3.0, size=length)
    mixture, weight = mix_waveforms(first, second, generator(3))
    padded = np.zeros(5)
    padded[: min(5, length)] = (second - second.mean())[:5]
    expected = weight * (first - first.mean()) + (1 - weight) * padded
    assert np.allclose(mixture, expected - expected.mean()) and 0 < weight < 1


def test_weights_have_the_moments_of_the_beta_distribution():
    rng = generator()
    weights = [mix_waveforms(np.ones(2, np.float32), np.ones(2, np.float32), rng, alpha=10.0)[1] for _ in range(4000)]
    assert np.mean(weights) == pytest.approx(0.5, abs=0.01)
    assert np.var(weights) == pytest.approx(1 / (4 * 21), rel=0.1)  # Beta(a, a): 1 / (4 (2a + 1))
    assert mix_waveforms(np.ones(2, np.float32), np.ones(2), rng)[0].dtype == np.float32


def test_targets_are_mixed_by_the_same_weight():
    assert soft_target(0, 2, 0.25, num_labels=3).tolist() == [0.25, 0, 0.75]
    assert soft_target(1, 1, 0.25, num_labels=2).tolist() == [0, 1]
    mixed = soft_target([1, 0, np.nan, 1], [1, 1, 0, np.nan], 0.75)
    assert mixed[:2].tolist() == [1, 0.25] and np.isnan(mixed[2:]).all() and mixed.dtype == np.float32


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 1, 0.5), "num_labels=None"),
        ((0, 3, 0.5, 3), r"got 3 with num_labels=3"),
        (([1, 0], [1, 0, 0], 0.5), "got 2 and 3"),
        (([1, 0], [1, 0], 1.5), "got 1.5"),
        (([1, 0], [1, -100], 0.5), "NaN where unknown, got -100"),
    ],
)
def test_targets_that_cannot_be_mixed_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        soft_target(*arguments)


@pytest.mark.parametrize("axis, masks", [(0, (5, 0)), (1, (0, 5))])
def test_a_mask_is_one_band_of_uniform_width_below_its_parameter_anywhere(axis, masks):
    rng, augment = generator(), SpecAugment(*masks, value=-7.0)
    spectrogram = np.zeros((12, 12), dtype=np.float32)
    widths, touched = Counter(), Counter()
    for _ in range(4000):
        masked = augment(spectrogram, rng) == -7
        rows = masked.all(axis=1 - axis)
        assert np.array_equal(masked, np.broadcast_to(np.expand_dims(rows, 1 - axis), masked.shape))
        places = np.flatnonzero(rows)
        assert places.size == 0 or np.ptp(places) == places.size - 1
        widths[places.size] += 1
        touched.update(places.tolist())
    assert set(widths) == set(range(5)) and min(widths.values()) > 650  # of 800
    assert set(touched) == set(range(11))  # never the last: start and width are rounded down apart from each other
    assert not spectrogram.any()


def test_both_masks_apply_and_leave_the_rest():
    spectrogram = generator(1).normal(size=(30, 20))
    masked = SpecAugment(20, 15, value=99.0)(spectrogram, generator(5))
    hidden = masked == 99
    assert hidden.all(axis=1).any() and hidden.all(axis=0).any() and not hidden.all()
    assert np.array_equal(masked[~hidden], spectrogram[~hidden])


def test_masking_normalized_spectrograms_equals_normalizing_masked_ones():
    extractor = ASTFeatureExtractor(num_mel_bins=36, max_length=46, mean=-6.6, std=5.4)
    raw = ASTFeatureExtractor(num_mel_bins=36, max_length=46, do_normalize=False)
    before, after = (
        np.asarray(each(tone("low"), sampling_rate=RATE, return_tensors="np")["input_values"][0])
        for each in (raw, extractor)
    )
    expected = (SpecAugment(20, 15)(before, generator(5)) + 6.6) / (2 * 5.4)
    masked = SpecAugment.for_extractor(extractor, 20, 15)(after, generator(5))
    assert np.allclose(masked, expected, atol=1e-5) and not np.allclose(masked, after)
    assert SpecAugment.for_extractor(raw, 20, 15).value == 0


@pytest.mark.parametrize(
    "masks, message", [((11, 2), "time_mask=11 .* has 10"), ((10, 9), "frequency_mask=9 .* has 8")]
)
def test_masks_wider_than_the_spectrogram_are_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        SpecAugment(*masks)(np.zeros((10, 8)), generator())
    with pytest.raises(ValueError, match="time_mask must be 0 or more, got -1"):
        SpecAugment(-1, 0)


def test_noise_is_small_and_positive_and_the_roll_goes_up_to_ten_frames_either_way():
    rng, rolls, levels = generator(), set(), []
    spectrogram = np.zeros((40, 3), dtype=np.float32)
    spectrogram[20] = 100
    for _ in range(400):
        noisy = noise_and_roll(spectrogram, rng)
        rolls.add(int(noisy.argmax(axis=0)[0]) - 20)
        noise = np.delete(noisy, noisy.argmax(axis=0)[0], axis=0)
        assert noise.min() >= 0 and noise.max() <= 0.1 and noisy.dtype == np.float32
        levels.append(noise.max())
    assert rolls == set(range(-10, 10))
    assert np.mean(levels) == pytest.approx(0.05, abs=0.005)  # of one U(0, 1) / 10 for the whole spectrogram
    assert spectrogram.sum() == 300


@pytest.fixture(scope="module")
def musan(tmp_path_factory):
    """Pure tones of whole periods a second: those of a mixture can be told apart, each with its own power."""
    folder = tmp_path_factory.mktemp("musan")
    time = np.arange(2 * RATE) / RATE
    for kind, base in {"noise": 1000, "music": 2000, "speech": 3000}.items():
        (folder / kind / "part").mkdir(parents=True)
        for index in range(9):
            wave = 0.02 * (index + 1) * np.sin(2 * np.pi * (base + 100 * index) * time)
            soundfile.write(folder / kind / "part" / f"{index}.wav", wave, RATE, subtype="FLOAT")
    (folder / "noise" / "README").write_text("not audio")
    return folder


def ratios(waveform, noisy, base):
    """The signal-to-noise ratio in dB of each tone above `base` Hz that was added to a second of audio."""
    spectrum = np.fft.rfft(noisy - waveform) / len(waveform)
    powers = 2 * np.abs(spectrum[base : base + 900 : 100]) ** 2
    assert np.sum(powers) == pytest.approx(np.mean((noisy - waveform) ** 2), rel=1e-3)  # nothing else was added
    return 10 * np.log10(np.mean(waveform**2) / powers[powers > 1e-3 * powers.max()])


@pytest.mark.parametrize(
    "kind, base, counts", [("noise", 1000, {1}), ("music", 2000, {1}), ("speech", 3000, {3, 4, 5, 6, 7})]
)
def test_noise_has_the_ratio_and_number_of_its_kind(musan, kind, base, counts):
    rng, noise = generator(), MusanNoise(musan)
    waveform = tone("low", seconds=1.0).astype(np.float64)
    found = [ratios(waveform, noise(waveform, rng, kind), base) for _ in range(100)]
    (least, most), values = SNR[kind], np.concatenate(found)
    assert {len(each) for each in found} == counts
    assert least - 0.01 <= values.min() and values.max() <= most + 0.01
    assert values.mean() == pytest.approx((least + most) / 2, abs=0.15 * (most - least))
    assert np.ptp(values) > 0.9 * (most - least)


def test_kinds_are_drawn_alike_and_the_same_generator_gives_the_same_noise(musan):
    noise, waveform, rng = MusanNoise(musan), tone("low", seconds=1.0), generator()
    kinds = Counter()
    for _ in range(150):
        added = np.abs(np.fft.rfft(noise(waveform, rng) - waveform))
        kinds[int(added.argmax()) // 1000] += 1
    assert set(kinds) == {1, 2, 3} and min(kinds.values()) > 30
    assert np.array_equal(noise(waveform, generator(7)), noise(waveform, generator(7)))
    assert noise(waveform, generator(7)).dtype == np.float32


def test_recordings_at_another_rate_or_shorter_than_the_clip_are_fitted(tmp_path):
    (tmp_path / "noise").mkdir()
    time = np.arange(4000) / 8000
    soundfile.write(tmp_path / "noise" / "short.flac", 0.5 * np.sin(2 * np.pi * 500 * time), 8000)
    waveform = tone("low", seconds=2.0)
    noisy = MusanNoise(tmp_path, kinds=("noise",))(waveform, generator())
    added = np.abs(np.fft.rfft(noisy - waveform))
    assert added.argmax() == 1000  # 500 Hz in two seconds
    level = np.sqrt(np.mean((noisy - waveform).reshape(4, -1) ** 2, axis=1))
    assert np.allclose(level, level[0], rtol=0.05)


def test_silence_stays_silent_and_silent_noise_adds_nothing(tmp_path):
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "silent.wav", np.zeros(1000), RATE)
    noise = MusanNoise(tmp_path, kinds=("noise",))
    assert np.array_equal(noise(tone("low"), generator()), tone("low"))
    soundfile.write(tmp_path / "noise" / "silent.wav", tone("high"), RATE)
    assert not noise(np.zeros(500, dtype=np.float32), generator()).any()


def test_a_folder_without_noise_is_refused(musan, tmp_path):
    (tmp_path / "noise").mkdir()
    with pytest.raises(ValueError, match=r"noise: no audio files\. .* music, noise and speech"):
        MusanNoise(tmp_path)
    with pytest.raises(ValueError, match="'rain' is unknown, choose from noise"):
        MusanNoise(musan, kinds=("rain",))
    with pytest.raises(ValueError, match="kinds is empty"):
        MusanNoise(musan, kinds=())
    with pytest.raises(ValueError, match="kind 'music' is none of noise"):
        MusanNoise(musan, kinds=("noise",))(tone("low"), generator(), "music")


@pytest.mark.parametrize(
    "content, message", [(b"no audio", "broken.wav: no readable audio"), (None, "broken.wav: has no samples")]
)
def test_an_unusable_recording_is_named(tmp_path, content, message):
    (tmp_path / "music").mkdir()
    path = tmp_path / "music" / "broken.wav"
    soundfile.write(path, np.zeros(0), RATE) if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        MusanNoise(tmp_path, kinds=("music",))(tone("low"), generator())
