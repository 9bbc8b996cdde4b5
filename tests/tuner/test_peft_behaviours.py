"""What PEFT promises of every tuner type: adapters side by side, taken off, switched off, trained."""

import copy
import dataclasses
import warnings

import accelerate
import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, prepare_model_for_kbit_training
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import ModulesToSaveWrapper, set_peft_model_state_dict
from tiny import BACKBONES, CHANGED_AT_START, METHODS, make_inputs, randomize, trainable

from peft_audio.tuner.tuner_layer import HookedTunerLayer


# A second configuration of each method, of another size.
OTHER_SIZE = {
    "embedding_prompt": {"num_virtual_tokens": 2},
    "parallel_mlp": {"bottleneck_dim": 4, "scaling": 2.0},
    "ipet": {"num_virtual_tokens": 5, "bottleneck_dim": 4},
    "time_freq_conv": {"bottleneck_dim": 4, "mlp_kernel": None},
    "bottleneck_sequential": {"bottleneck_dim": 4, "sites": ("mlp",), "placement": "parallel"},
    "input_prompt": {"prompt_size": 2},
}
LABELS = torch.tensor([0, 3])
each_backbone = pytest.mark.parametrize("backbone", ["ast", "wav2vec2"])
each_method = pytest.mark.parametrize("method", OTHER_SIZE)
two_methods = pytest.mark.parametrize("method", ["ipet", "input_prompt"])


def other_config(method, **options):
    return dataclasses.replace(METHODS[method](**options), **OTHER_SIZE[method])


def adapted(backbone, config, adapter_name="default"):
    return get_peft_model(BACKBONES[backbone](), config, adapter_name=adapter_name).eval()


def with_two(backbone, method):
    """A model with two adapters of different sizes and random weights, the first active, and the logits of each."""
    model = randomize(adapted(backbone, METHODS[method](), "first"))
    model.add_adapter("second", other_config(method))
    model.set_adapter("second")
    second = logits(randomize(model, seed=5).eval(), backbone)
    model.set_adapter("first")
    return model, {"first": logits(model, backbone), "second": second}


def logits(model, backbone):
    with torch.no_grad():
        return model(**make_inputs(backbone)).logits


def heads(model):
    return [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]


def tuner_layers(model):
    return [module for module in model.modules() if isinstance(module, HookedTunerLayer)]


def layer_of(key):
    """Number of the encoder layer that a tensor belongs to."""
    _, found, rest = key.partition("layers.")
    return rest.split(".")[0] if found else None


def train(model, backbone, steps=1):
    """Return the losses of some steps; the model is in evaluation mode afterwards."""
    model.train()
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**make_inputs(backbone), labels=LABELS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


# ---- the model ---------------------------------------------------------------------------------------------------


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


# ---- adapters side by side ---------------------------------------------------------------------------------------


@each_backbone
@each_method
def test_each_of_two_configurations_gives_what_it_gives_alone(backbone, method):
    alone = {
        "first": randomize(adapted(backbone, METHODS[method](), "first")),
        "second": randomize(adapted(backbone, other_config(method), "second"), seed=5),
    }
    model = adapted(backbone, METHODS[method](), "first")
    model.add_adapter("second", other_config(method))
    for name, other in alone.items():
        set_peft_model_state_dict(model, get_peft_model_state_dict(other, adapter_name=name), adapter_name=name)
    for name in ("first", "second", "first"):
        model.set_adapter(name)
        torch.testing.assert_close(logits(model.eval(), backbone), logits(alone[name], backbone))
    assert not torch.allclose(*(logits(other, backbone) for other in alone.values()), atol=1e-3)


@each_backbone
@each_method
def test_an_adapter_added_after_training_changes_nothing_until_it_is_set(backbone, method):
    model = adapted(backbone, METHODS[method](), "first")
    train(model, backbone, steps=2)
    before, trained = logits(model, backbone), {name: p.detach().clone() for name, p in trainable(model).items()}
    model.add_adapter("second", other_config(method))
    assert trainable(model).keys() == trained.keys()
    assert all(torch.equal(value, trained[name]) for name, value in trainable(model).items())
    assert torch.equal(logits(model, backbone), before)
    model.set_adapter("second")
    assert trainable(model) and all(".second." in name for name in trainable(model))
    train(model, backbone)
    model.set_adapter("first")
    assert all(torch.equal(value, trained[name]) for name, value in trainable(model).items())
    assert torch.equal(logits(model, backbone), before)


@each_backbone
def test_adapters_on_different_layers_change_only_their_own(backbone):
    model = adapted(backbone, METHODS["ipet"](layers_to_transform=[0], init_weights=False), "first")
    model.add_adapter("second", METHODS["ipet"](layers_to_transform=[2], init_weights=False))
    with torch.no_grad(), model.disable_adapter():
        plain = model(**make_inputs(backbone), output_hidden_states=True).hidden_states
    for name, first_changed in (("first", 1), ("second", 3)):
        model.set_adapter(name)
        with torch.no_grad():
            states = model(**make_inputs(backbone), output_hidden_states=True).hidden_states
        changed = [not torch.equal(state, other) for state, other in zip(states, plain)]
        assert changed == [index >= first_changed for index in range(len(plain))]
        layers = {layer_of(key) for key in get_peft_model_state_dict(model, adapter_name=name)}
        assert layers == {str(first_changed - 1), None}  # None: the head


@each_backbone
@each_method
def test_requires_grad_is_set_by_adapter(backbone, method):
    model, _ = with_two(backbone, method)
    own = {name: {key for key, _ in model.named_parameters() if f".{name}." in key} for name in model.peft_config}
    assert trainable(model).keys() == own["first"]
    model.set_requires_grad("second")
    assert trainable(model).keys() == own["first"] | own["second"]
    model.set_requires_grad(["first", "second"], requires_grad=False)
    assert not trainable(model)
    model.set_requires_grad(["second"])
    assert trainable(model).keys() == own["second"]
    model.set_requires_grad("unknown", requires_grad=False)
    assert trainable(model).keys() == own["second"] and model.active_adapter == "first"


@each_backbone
@two_methods
def test_inference_mode_freezes(backbone, method):
    assert not trainable(adapted(backbone, METHODS[method](inference_mode=True)))
    model, _ = with_two(backbone, method)
    model.set_adapter("second", inference_mode=True)
    assert not trainable(model) and model.active_adapters == ["second"]


@each_backbone
def test_wrong_additions_are_refused_and_leave_the_model_alone(backbone):
    model = randomize(adapted(backbone, METHODS["ipet"]()))
    before, keys = logits(model, backbone), list(model.state_dict())
    with pytest.raises(ValueError, match="'default' already exists"):
        model.add_adapter("default", other_config("ipet"))
    with pytest.raises(ValueError, match="different peft types"):
        model.add_adapter("second", METHODS["parallel_mlp"]())
    with pytest.raises(ValueError, match="between -3 and 2"):
        model.add_adapter("second", METHODS["ipet"](layers_to_transform=[7]))
    with pytest.raises(ValueError, match="second not found"):
        model.set_adapter("second")
    assert list(model.peft_config) == ["default"] and list(model.state_dict()) == keys
    assert torch.equal(logits(model, backbone), before)


# ---- deleting and unloading --------------------------------------------------------------------------------------


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


# ---- switching off -----------------------------------------------------------------------------------------------


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


# ---- training ----------------------------------------------------------------------------------------------------


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
