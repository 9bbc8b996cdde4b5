"""What PEFT reports of an adapted model."""

import torch
from peft import get_peft_model
from tiny import BACKBONES, METHODS, NUM_LAYERS, each_method, each_typical_backbone, trainable


HEADS = ("model.classifier", "model.projector")


@each_typical_backbone
@each_method
def test_layer_and_model_status(backbone, method):
    model = get_peft_model(BACKBONES[backbone](), METHODS[method]())
    layers = [status for status in model.get_layer_status() if not status.name.startswith(HEADS)]
    expected = {"linear_probe": 0, "input_prompt": 1}.get(method, NUM_LAYERS)
    assert len(layers) == expected
    assert all(status.enabled and status.active_adapters == ["default"] for status in layers)
    assert all(set(status.requires_grad.values()) == {True} for status in layers)
    status = model.get_model_status()
    assert status.trainable_params == sum(p.numel() for p in trainable(model).values())
    assert status.available_adapters == ["default"] and status.devices == {"default": ["cpu"]}
    assert status.base_model_type == type(model.get_base_model()).__name__
    with model.disable_adapter():
        assert model.get_model_status().enabled is False


@each_typical_backbone
def test_dtype_and_device_moves_take_the_adapter_along(backbone):
    model = get_peft_model(BACKBONES[backbone](), METHODS["ipet"]()).to(torch.float64)
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float64}
    assert model.to("meta").get_model_status().devices == {"default": ["meta"]}
