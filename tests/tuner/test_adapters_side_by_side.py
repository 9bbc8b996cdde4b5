"""Several adapters on one model, one of them active: what PEFT promises of every tuner type."""

import pytest
import torch
from adapted import adapted, each_backbone, each_method, layer_of, logits, other_config, train, two_methods, with_two
from peft import get_peft_model_state_dict
from peft.utils import set_peft_model_state_dict
from tiny import METHODS, make_inputs, randomize, trainable


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
