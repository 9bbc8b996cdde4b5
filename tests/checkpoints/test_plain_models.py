"""transformers' own methods for adapters, on a model that is no PeftModel."""

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.functional import delete_adapter
from saved import (
    close,
    each_backbone,
    in_layers,
    logits,
    own_parameters,
    some_methods,
    three_methods,
    trained,
    two_methods,
    without_prefix,
)
from tiny import BACKBONES, METHODS, randomize, trainable
from transformers import AutoModelForAudioClassification


def plain(source, backbone, method, **options):
    """The adapters of `source` on a model of transformers, put there with its own methods; the last is active."""
    model = BACKBONES[backbone]()
    for name in source.peft_config:
        model.add_adapter(METHODS[method](**options), name)
        state_dict = get_peft_model_state_dict(source, adapter_name=name)
        set_peft_model_state_dict(model, without_prefix(state_dict), adapter_name=name)
    return model.eval()


@each_backbone
@some_methods
def test_transformers_own_methods(backbone, method):
    base = logits(BACKBONES[backbone](), backbone)
    source, outputs = trained(backbone, method, "first", "second")
    model = plain(source, backbone, method)
    assert model.active_adapters() == ["second"]
    for name in ("second", "first"):
        model.set_adapter(name)
        assert model.active_adapters() == [name] and close(logits(model, backbone), outputs[name])
        expected = without_prefix(get_peft_model_state_dict(source, adapter_name=name))
        state_dict = model.get_adapter_state_dict()
        assert state_dict.keys() == expected.keys()
        assert all(torch.equal(state_dict[key], value) for key, value in expected.items())
    model.delete_adapter("first")
    assert model.active_adapters() == ["second"] and not own_parameters(model, "first")
    assert close(logits(model, backbone), outputs["second"])
    model.disable_adapters()
    assert torch.equal(logits(model, backbone), base)
    model.delete_adapter("second")
    assert not hasattr(model, "peft_config") and torch.equal(logits(model, backbone), base)


@each_backbone
def test_wrong_names_are_refused_by_transformers_own_methods(backbone):
    model = BACKBONES[backbone]()
    with pytest.raises(ValueError, match="No adapter loaded"):
        model.active_adapters()
    model.add_adapter(METHODS["ipet"](), "first")
    with pytest.raises(ValueError, match="first already exists"):
        model.add_adapter(METHODS["ipet"](), "first")
    for wrong in ("second", ["first", "second"]):
        with pytest.raises(ValueError, match="second"):
            model.set_adapter(wrong)
        with pytest.raises(ValueError, match="second"):
            model.delete_adapter(wrong)
    assert model.active_adapters() == ["first"]


@each_backbone
@pytest.mark.parametrize("method", ["parallel_mlp", "time_freq_conv", "input_prompt"])
def test_a_plain_model_with_two_active_adapters_and_no_heads(backbone, method):
    source, outputs = trained(backbone, method, "first", modules_to_save=[])
    model = plain(source, backbone, method, modules_to_save=[])
    model.add_adapter(METHODS[method](modules_to_save=[]), "second")  # which starts without effect
    model.set_adapter(["first", "second"])
    assert model.active_adapters() == ["first", "second"]
    assert close(logits(model.eval(), backbone), outputs["first"])
    randomize(model)
    assert not close(logits(model, backbone), outputs["first"])
    both = logits(model, backbone)
    model.disable_adapters()
    assert torch.equal(logits(model, backbone), logits(BACKBONES[backbone](), backbone))
    model.enable_adapters()
    assert torch.equal(logits(model, backbone), both)


@each_backbone
@two_methods
def test_enabling_a_plain_models_adapters_brings_the_heads_back(backbone, method):
    source, outputs = trained(backbone, method)
    model = plain(source, backbone, method)
    model.disable_adapters()
    model.enable_adapters()
    assert close(logits(model, backbone), outputs["default"])


@each_backbone
@two_methods
def test_only_the_active_adapter_of_a_plain_model_trains(backbone, method):
    model = BACKBONES[backbone]()
    for name in ("first", "second"):
        model.add_adapter(METHODS[method](), name)
        assert trainable(model).keys() == own_parameters(model, name).keys()


@each_backbone
@two_methods
def test_a_second_injected_adapter_is_active_with_its_head(backbone, method):
    source, outputs = trained(backbone, method, "first", "second")
    model = BACKBONES[backbone]()
    for name in ("first", "second"):
        inject_adapter_in_model(METHODS[method](), model, name)
        state_dict = get_peft_model_state_dict(source, adapter_name=name)
        set_peft_model_state_dict(model, without_prefix(state_dict), adapter_name=name)
    assert close(logits(model.eval(), backbone), outputs["second"])


@each_backbone
@two_methods
def test_a_second_injected_adapter_can_be_deleted(backbone, method):
    model = BACKBONES[backbone]()
    for name in ("first", "second"):
        inject_adapter_in_model(METHODS[method](init_weights=False), model, name)
    delete_adapter(model, "second", prefix=f"{METHODS[method]().method_name}_")
    assert not own_parameters(model, "second") and own_parameters(model, "first")


# Loading: wav2vec2 has a `load_adapter` of its own, for the languages of MMS.


def test_wav2vec2s_own_load_adapter_refuses(tmp_path):
    trained("wav2vec2", "ipet")[0].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="adapter_attn_dim"):
        BACKBONES["wav2vec2"]().load_adapter(tmp_path)


@pytest.mark.parametrize("backbone", ["ast", "hubert"])
@three_methods
def test_transformers_loads_an_adapter(backbone, method, tmp_path):
    base = BACKBONES[backbone]()
    base.save_pretrained(tmp_path / "base")
    source = get_peft_model(type(base).from_pretrained(tmp_path / "base"), METHODS[method]())
    expected = logits(randomize(source).eval(), backbone)
    source.save_pretrained(tmp_path / "adapter")
    by_auto_class = AutoModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    by_folder, by_state_dict = BACKBONES[backbone](), BACKBONES[backbone]()
    by_folder.load_adapter(tmp_path / "adapter")
    state_dict = get_peft_model_state_dict(source)
    by_state_dict.load_adapter(peft_config=METHODS[method](), adapter_state_dict=state_dict)
    for model in (by_auto_class, by_folder, by_state_dict):
        assert close(logits(model, backbone), expected)
        # transformers freezes what is in the layers, not the heads.
        assert model.active_adapters() == ["default"] and not trainable(model).keys() & in_layers(model, "default")


@two_methods
def test_transformers_loads_a_second_adapter_and_deletes_it(method, tmp_path):
    source, outputs = trained("ast", method, "first", "second")
    source.save_pretrained(tmp_path)
    model = BACKBONES["ast"]()
    for name in ("first", "second"):
        model.load_adapter(tmp_path / name, adapter_name=name)
        assert close(logits(model, "ast"), outputs[name])
    model.delete_adapter("second")
    assert model.active_adapters() == ["first"] and close(logits(model, "ast"), outputs["first"])


@two_methods
def test_a_second_adapter_that_does_not_fit_is_taken_off_again(method):
    source, outputs = trained("ast", method)
    model = plain(source, "ast", method)
    state_dict = get_peft_model_state_dict(source)
    state_dict.pop(next(key for key in state_dict if "classifier" not in key))
    with pytest.raises(ValueError, match="does not fit adapter 'second'"):
        model.load_adapter(peft_config=METHODS[method](), adapter_state_dict=state_dict, adapter_name="second")
    assert list(model.peft_config) == ["default"] and not own_parameters(model, "second")
    assert close(logits(model, "ast"), outputs["default"])
