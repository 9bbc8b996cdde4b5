"""Adapters switched off for a time: what PEFT promises of every tuner type."""

import pytest
import torch
from adapted import each_backbone, each_method, logits, with_two
from tiny import BACKBONES, trainable


@each_backbone
@each_method
def test_contexts_without_adapter(backbone, method):
    model, outputs = with_two(backbone, method)
    base, names = logits(BACKBONES[backbone](), backbone), trainable(model).keys()
    with model.disable_adapter():
        assert torch.equal(logits(model, backbone), base) and not trainable(model)
        with model.disable_adapter():
            assert torch.equal(logits(model, backbone), base)
        assert torch.equal(logits(model, backbone), base)
    assert torch.equal(logits(model, backbone), outputs["first"]) and trainable(model).keys() == names
    with pytest.raises(RuntimeError, match="inside"), model.disable_adapter():
        raise RuntimeError("inside")
    assert torch.equal(logits(model, backbone), outputs["first"])
    with model.disable_adapter():
        model.set_adapter("second")
        assert torch.equal(logits(model, backbone), base)
    assert torch.equal(logits(model, backbone), outputs["second"])


@each_backbone
@each_method
def test_layers_are_disabled_until_they_are_enabled(backbone, method):
    model, outputs = with_two(backbone, method)
    base, names = logits(BACKBONES[backbone](), backbone), trainable(model).keys()
    model.base_model.disable_adapter_layers()
    assert torch.equal(logits(model, backbone), base) and not trainable(model)
    with model.disable_adapter():
        assert torch.equal(logits(model, backbone), base)
    assert torch.equal(logits(model, backbone), base)
    model.set_adapter("second")
    assert torch.equal(logits(model, backbone), base)
    model.set_adapter("first")
    model.base_model.enable_adapter_layers()
    assert torch.equal(logits(model, backbone), outputs["first"]) and trainable(model).keys() == names
