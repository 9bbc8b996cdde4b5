"""Statistics of spectrograms against NumPy on all of them at once."""

import tracemalloc

import numpy as np
import pytest
import torch
from sounds import tone
from training.statistics import spectrogram_statistics
from transformers import ASTFeatureExtractor


@pytest.mark.parametrize("offset", [0.0, -6.6, 1e6])
def test_they_equal_those_of_the_concatenation(offset):
    rng = np.random.default_rng(0)
    spectrograms = [
        (offset + rng.normal(frames / 10, 1 + frames / 20, size=(frames, 16))).astype(np.float32)
        for frames in (1, 50, 7, 100)
    ]
    everything = np.concatenate(spectrograms).astype(np.float64)
    found = spectrogram_statistics(torch.from_numpy(spectrogram) for spectrogram in spectrograms)
    assert found == pytest.approx((everything.mean(), everything.std()), rel=1e-9)


def test_they_normalize_the_input_of_ast_to_mean_0_and_standard_deviation_a_half():
    def spectrograms(**options):
        extractor = ASTFeatureExtractor(num_mel_bins=36, max_length=46, **options)
        for seed, label in enumerate(["low", "middle", "high"]):
            outputs = extractor(tone(label, seed=seed), sampling_rate=16000, return_tensors="np")
            yield np.asarray(outputs["input_values"][0])

    mean, std = spectrogram_statistics(spectrograms(do_normalize=False))
    normalized = np.concatenate(list(spectrograms(mean=mean, std=std)))
    assert normalized.mean() == pytest.approx(0, abs=1e-5) and normalized.std() == pytest.approx(0.5, abs=1e-5)


def test_memory_does_not_grow_with_the_number_of_spectrograms():
    def peak(count):
        tracemalloc.start()
        spectrogram_statistics(np.full((200, 64), index, dtype=np.float32) for index in range(count))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    spectrogram_statistics([np.ones((2, 2))])  # what is imported at the first call does not count
    assert peak(60) < 1.2 * peak(6)


@pytest.mark.parametrize(
    "spectrograms, message",
    [
        ([], "no spectrograms"),
        ([np.ones((2, 3)), np.ones((0, 3))], "Spectrogram 1 .* is empty"),
        ([np.array([[1.0, np.nan]])], "Spectrogram 0 .* not finite"),
        ([np.ones((2, 3)), np.array([[-np.inf]])], "Spectrogram 1 .* not finite"),
    ],
)
def test_unusable_spectrograms_are_named(spectrograms, message):
    with pytest.raises(ValueError, match=message):
        spectrogram_statistics(spectrograms)
