"""Features that are computed on the device."""

import numpy as np
import pytest
import torch
from transformers import (
    ASTFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from peft_audio import data


EXTRACTORS = {
    "ast": lambda: ASTFeatureExtractor(max_length=128),
    "wav2vec2": lambda: Wav2Vec2FeatureExtractor(return_attention_mask=True),
    "wav2vec2-bert": SeamlessM4TFeatureExtractor,
    "whisper": lambda: WhisperFeatureExtractor(chunk_length=2),
}


@pytest.mark.skipif(not hasattr(data, "TorchFeatures"), reason="this version computes no features with torch")
@pytest.mark.parametrize("name", EXTRACTORS)
def test_features_on_the_device_are_those_on_the_cpu(name, device):
    extractor = EXTRACTORS[name]()
    generator = np.random.default_rng(0)
    clips = [0.1 * generator.standard_normal(length).astype(np.float32) for length in (16000, 12000, 20000)]
    options = {"sampling_rate": 16000, "return_tensors": "pt", "padding": "max_length" if name == "whisper" else True}
    expected = data.TorchFeatures(extractor)(clips, **options)
    actual = data.TorchFeatures(extractor, device=device)(clips, **options)
    assert actual.keys() == expected.keys()
    for key, value in actual.items():
        assert value.device.type == device.type, key
        torch.testing.assert_close(value.cpu(), expected[key], atol=1e-4, rtol=1e-4)
