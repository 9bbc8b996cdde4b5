"""What PEFT promises of a model with an adapter of any tuner type: its attributes, its precision, its training."""

import copy

import accelerate
import pytest
import torch
from adapted import (
    LABELS,
    adapted,
    each_backbone,
    each_method,
    layer_of,
    logits,
    other_config,
    train,
    two_methods,
    with_two,
)
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from tiny import BACKBONES, METHODS, make_inputs, randomize, trainable


# ---- the model -------------------------------------------------------------------------------------------------------


@each_backbone
@each_method
def test_attributes(backbone, method):
    base = BACKBONES[backbone]()
    num_base = sum(parameter.numel() for parameter in base.parameters())
    model = get_peft_model(base, METHODS[method](), adapter_name="mine")
    config = model.peft_config["mine"]
    assert type(model.base_model) is PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    assert model.get_base_model() is base and model.base_model.model is base
    assert type(config) is type(METHODS[method]()) and model.active_peft_config is config
    assert model.active_adapter == "mine" and model.active_adapters == ["mine"]
    assert model.peft_type == config.peft_type and model.modules_to_save == set(config.modules_to_save)
    assert model.config is base.config and model.name_or_path == base.name_or_path and model.dtype == base.dtype
    with pytest.raises(AttributeError, match="no_such_attribute"):
        _ = model.no_such_attribute
    # The trained head is a copy beside the original, so everything that trains comes on top of the base model.
    num_trained = sum(parameter.numel() for parameter in trainable(model).values())
    assert model.get_nb_trainable_parameters() == (num_trained, num_base + num_trained)


def test_trainable_parameters_are_printed(capsys):
    model = adapted("ast", METHODS["ipet"]())
    num_trained, num_all = model.get_nb_trainable_parameters()
    model.print_trainable_parameters()
    assert f"trainable params: {num_trained:,d} || all params: {num_all:,d}" in capsys.readouterr().out


@each_backbone
@each_method
def test_the_base_models_own_values_stay_through_training(backbone, method):
    base = BACKBONES[backbone]()
    before = copy.deepcopy(base.state_dict())
    model = get_peft_model(base, METHODS[method]())
    train(model, backbone)
    after = {}
    for key, value in model.get_base_model().state_dict().items():
        after[key.replace(".base_layer.", ".").replace(".original_module.", ".")] = value
    assert before.keys() <= after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@two_methods
def test_training_and_evaluation_mode_reach_every_module(method):
    model = adapted("wav2vec2", METHODS[method]())
    assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.train().modules())


@each_backbone
@each_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_finite_logits_near_the_full_ones(backbone, method, dtype):
    model = randomize(adapted(backbone, METHODS[method]()), std=0.02)
    full = logits(model, backbone)
    model.to(dtype)
    assert {value.dtype for value in model.parameters()} == {dtype}
    inputs = {name: value.to(dtype) for name, value in make_inputs(backbone).items()}
    half = model(**inputs).logits
    assert half.dtype == dtype and half.isfinite().all()
    torch.testing.assert_close(half.float(), full, atol=0.15, rtol=0.1)


@two_methods
def test_adapters_keep_the_base_models_precision_on_request(method):
    base = BACKBONES["ast"]().to(torch.bfloat16)
    model = get_peft_model(base, METHODS[method](), autocast_adapter_dtype=False)
    model.add_adapter("second", other_config(method), autocast_adapter_dtype=False)
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


@each_backbone
@two_methods
def test_a_dispatched_base_model(backbone, method, tmp_path):
    def dispatched():
        return accelerate.dispatch_model(BACKBONES[backbone](), {"": "cpu"}, force_hooks=True)

    model = randomize(get_peft_model(dispatched(), METHODS[method]())).eval()
    with model.disable_adapter():
        assert torch.equal(logits(model, backbone), logits(BACKBONES[backbone](), backbone))
    model.save_pretrained(tmp_path)
    for base in (dispatched(), BACKBONES[backbone]()):
        again = PeftModel.from_pretrained(base, tmp_path)
        torch.testing.assert_close(logits(again, backbone), logits(model, backbone))


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}])
def test_a_base_model_loaded_with_a_device_map(device_map, tmp_path):
    base = BACKBONES["ast"]()
    base.save_pretrained(tmp_path)
    model = get_peft_model(type(base).from_pretrained(tmp_path, device_map=device_map), METHODS["ipet"]()).eval()
    assert {value.device.type for value in model.parameters()} == {"cpu"}
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, "ast"), logits(base, "ast"))
    train(model, "ast")


# ---- training --------------------------------------------------------------------------------------------------------


@each_backbone
@each_method
def test_the_loss_falls_and_the_other_adapter_stays(backbone, method):
    model, outputs = with_two(backbone, method)
    losses = train(model, backbone, steps=8)
    assert losses[-1] < 0.5 * losses[0]
    assert not torch.allclose(logits(model, backbone), outputs["first"], atol=1e-3)
    model.set_adapter("second")
    assert torch.equal(logits(model, backbone), outputs["second"])


@each_backbone
@pytest.mark.parametrize("method", ["ipet", "time_freq_conv", "bottleneck_sequential"])
def test_training_one_layer(backbone, method):
    model = adapted(backbone, METHODS[method](layers_to_transform=-2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = train(model, backbone, steps=8)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert losses[-1] < 0.5 * losses[0]
    assert {layer_of(name) for name in changed if ".modules_to_save." not in name} == {"1"}


@each_backbone
@two_methods
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("prepare", ["kbit", "enabled_before"])
def test_a_base_model_prepared_for_checkpointing(backbone, method, use_reentrant, prepare):
    def gradients(base):
        torch.manual_seed(0)
        model = randomize(get_peft_model(base, METHODS[method]())).train()
        model(**make_inputs(backbone), labels=LABELS).loss.backward()
        return {name: parameter.grad for name, parameter in trainable(model).items()}

    base, options = BACKBONES[backbone](), {"use_reentrant": use_reentrant}
    if prepare == "kbit":
        base = prepare_model_for_kbit_training(base, gradient_checkpointing_kwargs=options)
    else:
        base.gradient_checkpointing_enable(options)
    expected = gradients(BACKBONES[backbone]())
    for name, gradient in gradients(base).items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-6, rtol=2e-5, msg=name)


@each_backbone
def test_an_adapter_for_inference_stays_frozen_after_a_disabling_context(backbone, tmp_path):
    adapted(backbone, METHODS["ipet"](), "default").save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(BACKBONES[backbone](), tmp_path)
    with model.disable_adapter(), model.disable_adapter():
        pass
    assert not any(parameter.requires_grad for parameter in model.parameters())
