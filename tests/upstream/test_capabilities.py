"""What PEFT's report of capabilities looks at says what is true: no merging, no conversion to LoRA, mixed batches."""

import dataclasses

import pytest
import torch
from peft import get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import BACKBONES, METHODS, randomize

from peft_audio.tuner.tuner_layer import HookedTunerLayer, first_tensor


@pytest.mark.parametrize("method", METHODS)
def test_classes_claim_what_they_can_do(method):
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[METHODS[method]().peft_type]
    assert tuner.tuner_layer_cls.merge is BaseTunerLayer.merge
    assert hasattr(tuner, "_enable_peft_forward_hooks") and hasattr(tuner.tuner_layer_cls, "_mixed_batch_forward")
    model = get_peft_model(BACKBONES["wav2vec2"](), METHODS[method]())
    layers = [layer for layer in model.modules() if isinstance(layer, HookedTunerLayer)]
    assert not any(layer.supports_lora_conversion() for layer in layers)
    assert "modules_to_save" in {field.name for field in dataclasses.fields(METHODS[method]())}


@pytest.mark.parametrize("method", ["ipet", "time_freq_conv", "bottleneck_parallel"])
def test_a_layer_by_itself_takes_an_adapter_for_each_sample(method):
    model = get_peft_model(BACKBONES["wav2vec2"](), METHODS[method](), "a")
    model.add_adapter("b", METHODS[method]())
    for seed, name in enumerate("ab"):
        model.set_adapter(name)
        randomize(model, seed=seed, std=0.5)
    layer = next(layer for layer in model.eval().modules() if isinstance(layer, HookedTunerLayer))
    tokens, expected = torch.randn(3, 7, 32), {}
    with torch.no_grad():
        for name in "ab":
            model.set_adapter(name)
            expected[name] = first_tensor(layer(tokens))
        mixed = first_tensor(layer._mixed_batch_forward(tokens, adapter_names=["b", "a", "b"]))
    for index, name in enumerate("bab"):
        torch.testing.assert_close(mixed[index], expected[name][index])
    assert not torch.allclose(expected["a"], expected["b"])
