"""State dicts with PEFT's functions, and adapters that wait for their values on the meta device."""

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from saved import (
    close,
    each_backbone,
    in_layers,
    logits,
    some_methods,
    three_methods,
    trained,
    without_prefix,
)
from tiny import BACKBONES, METHODS


@each_backbone
@some_methods
def test_a_state_dict_goes_into_an_adapter_of_another_name(backbone, method):
    source, outputs = trained(backbone, method)
    state_dict = get_peft_model_state_dict(source)
    model, others = trained(backbone, method, "first", "second")
    stays = {key: value.clone() for key, value in model.state_dict().items() if ".second." not in key}
    result = set_peft_model_state_dict(model, state_dict, adapter_name="second")
    assert result.unexpected_keys == [] and not [key for key in result.missing_keys if ".second." in key]
    assert all(torch.equal(model.state_dict()[key], value) for key, value in stays.items())
    model.set_adapter("second")
    assert close(logits(model, backbone), outputs["default"])
    returned = get_peft_model_state_dict(model, adapter_name="second")
    assert returned.keys() == state_dict.keys()
    assert all(torch.equal(returned[key], value) for key, value in state_dict.items())


@each_backbone
@three_methods
def test_a_state_dict_goes_into_a_plain_model(backbone, method):
    source, outputs = trained(backbone, method)
    model = inject_adapter_in_model(METHODS[method](), BACKBONES[backbone]()).eval()
    set_peft_model_state_dict(model, without_prefix(get_peft_model_state_dict(source)))
    assert close(logits(model, backbone), outputs["default"])
    twin = inject_adapter_in_model(METHODS[method](), BACKBONES[backbone]()).eval()
    set_peft_model_state_dict(twin, get_peft_model_state_dict(model))
    assert torch.equal(logits(twin, backbone), logits(model, backbone))
    source, outputs = trained(backbone, method, modules_to_save=[])
    model = inject_adapter_in_model(METHODS[method](modules_to_save=[]), BACKBONES[backbone]()).eval()
    set_peft_model_state_dict(model, get_peft_model_state_dict(source))
    assert close(logits(model, backbone), outputs["default"])


@pytest.mark.xfail(strict=True, raises=KeyError, reason="PEFT looks for heads without the prefix of a PeftModel")
@each_backbone
def test_a_state_dict_with_heads_and_prefix_goes_into_a_plain_model(backbone):
    source, outputs = trained(backbone, "ipet")
    model = inject_adapter_in_model(METHODS["ipet"](), BACKBONES[backbone]()).eval()
    set_peft_model_state_dict(model, get_peft_model_state_dict(source))
    assert close(logits(model, backbone), outputs["default"])


def on_meta(model):
    return {name for name, parameter in model.named_parameters() if parameter.is_meta}


@each_backbone
@three_methods
def test_adapters_wait_on_the_meta_device_for_their_values(backbone, method, tmp_path):
    source, outputs = trained(backbone, method, "first", "second")
    source.save_pretrained(tmp_path)
    config = METHODS[method]()
    model = PeftModel(BACKBONES[backbone](), config, "first", low_cpu_mem_usage=True).eval()
    assert on_meta(model) == in_layers(model, "first") != set()
    model.load_adapter(tmp_path / "first", "first", low_cpu_mem_usage=True)
    assert not on_meta(model) and close(logits(model, backbone), outputs["first"])
    model.add_adapter("second", config, low_cpu_mem_usage=True)
    assert on_meta(model) == in_layers(model, "second") and close(logits(model, backbone), outputs["first"])
    model.load_adapter(tmp_path / "second", "second", low_cpu_mem_usage=True)
    model.load_adapter(tmp_path / "first", "third", low_cpu_mem_usage=True)
    assert not on_meta(model)
    for name, expected in (("second", "second"), ("third", "first")):
        model.set_adapter(name)
        assert close(logits(model, backbone), outputs[expected])


@each_backbone
@three_methods
def test_a_plain_models_adapter_waits_on_the_meta_device(backbone, method):
    source, outputs = trained(backbone, method)
    state_dict = without_prefix(get_peft_model_state_dict(source))
    model = inject_adapter_in_model(METHODS[method](), BACKBONES[backbone](), low_cpu_mem_usage=True).eval()
    assert on_meta(model) == in_layers(model, "default") != set()
    set_peft_model_state_dict(model, state_dict, low_cpu_mem_usage=True)
    assert not on_meta(model) and close(logits(model, backbone), outputs["default"])
