"""Adapters deleted or unloaded: what PEFT promises of every tuner type."""

import warnings

import pytest
import torch
from adapted import adapted, each_backbone, each_method, heads, logits, train, tuner_layers, two_methods, with_two
from peft import get_peft_model
from tiny import BACKBONES, CHANGED_AT_START, METHODS, randomize, trainable


@each_backbone
@each_method
def test_deleting_the_active_adapter_activates_the_other(backbone, method):
    model, outputs = with_two(backbone, method)
    with pytest.warns(UserWarning, match="Setting active adapter to second"):
        model.delete_adapter("first")
    assert list(model.peft_config) == ["second"] and model.active_adapter == "second"
    assert not [key for key in model.state_dict() if ".first." in key]
    assert all(".second." in name for name in trainable(model))
    torch.testing.assert_close(logits(model, backbone), outputs["second"])
    train(model, backbone)


@each_backbone
@each_method
def test_deleting_an_inactive_adapter_changes_nothing(backbone, method):
    model, outputs = with_two(backbone, method)
    names = trainable(model).keys()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.delete_adapter("second")
    assert not [key for key in model.state_dict() if ".second." in key]
    assert model.active_adapters == ["first"] and trainable(model).keys() == names
    assert torch.equal(logits(model, backbone), outputs["first"])
    # The name is free again, and what comes back under it is new.
    model.add_adapter("second", METHODS[method]())
    model.set_adapter("second")
    assert not torch.allclose(logits(model.eval(), backbone), outputs["second"], atol=1e-3)
    if method not in CHANGED_AT_START:
        torch.testing.assert_close(logits(model, backbone), logits(BACKBONES[backbone](), backbone))


def test_deleting_an_unknown_adapter_is_refused():
    model, outputs = with_two("ast", "ipet")
    with pytest.raises(ValueError, match="unknown does not exist"):
        model.delete_adapter("unknown")
    assert torch.equal(logits(model, "ast"), outputs["first"])


@each_backbone
@each_method
def test_deleting_the_last_adapter_leaves_the_base_model(backbone, method):
    model = randomize(adapted(backbone, METHODS[method]()))
    model.delete_adapter("default")
    assert model.peft_config == {} and model.active_adapters == [] and not trainable(model)
    base = model.base_model.model
    assert torch.equal(logits(base, backbone), logits(BACKBONES[backbone](), backbone))


@each_backbone
@two_methods
def test_an_adapter_can_be_added_after_the_last_was_deleted(backbone, method):
    model = adapted(backbone, METHODS[method]())
    model.delete_adapter("default")
    model.add_adapter("default", METHODS[method](init_weights=False))
    model.set_adapter("default")
    assert not torch.equal(logits(model.eval(), backbone), logits(BACKBONES[backbone](), backbone))


@each_backbone
def test_deleting_the_active_of_two_adapters_on_different_layers(backbone):
    model = adapted(backbone, METHODS["ipet"](layers_to_transform=[0], init_weights=False), "first")
    model.add_adapter("second", METHODS["ipet"](layers_to_transform=[2], init_weights=False))
    model.set_adapter("second")
    expected = logits(model.eval(), backbone)
    model.set_adapter("first")
    model.delete_adapter("first")
    assert torch.equal(logits(model, backbone), expected) and model.active_adapter == "second"


@each_backbone
@two_methods
def test_deleting_an_active_adapter_without_head_brings_the_others_head_back(backbone, method):
    model = randomize(adapted(backbone, METHODS[method](), "first"))
    expected = logits(model, backbone)
    model.add_adapter("second", METHODS[method](modules_to_save=[]))
    model.set_adapter("second")
    model.delete_adapter("second")
    assert model.active_adapters == ["first"]
    torch.testing.assert_close(logits(model.eval(), backbone), expected)


@each_backbone
@each_method
def test_unloading_one_of_two_adapters_keeps_the_active_ones_head(backbone, method):
    model, _ = with_two(backbone, method)
    model.set_adapter("second")
    expected = {name: value for name, value in trainable(model).items() if ".modules_to_save." in name}
    base = model.unload()
    assert not heads(base) and not tuner_layers(base) and not hasattr(base, "peft_config")
    weights = base.state_dict()
    for name, value in expected.items():
        key = name.removeprefix("base_model.model.").replace(".modules_to_save.second", "")
        assert torch.equal(weights[key], value)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = get_peft_model(base, METHODS[method](), adapter_name="first").eval()
    with again.disable_adapter():
        assert torch.equal(logits(again, backbone), logits(base, backbone))
