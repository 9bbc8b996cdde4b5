"""The weights of `use_weighted_layer_sum`: trained, saved, per adapter."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny import (
    BACKBONES,
    METHODS,
    NUM_LAYERS,
    WITH_GRID,
    count_hooks,
    each_method,
    make_inputs,
    make_wav2vec2,
    randomize,
    trainable,
)

from peft_audio import AutoPeftModelForAudioClassification


INPUTS = make_inputs("wav2vec2")
LABELS = torch.tensor([0, 3])
each_norm_style = pytest.mark.parametrize("make_model", [BACKBONES["wav2vec2"], BACKBONES["wav2vec2-stable"]])


def own(model):
    return next(value for name, value in trainable(model).items() if "layer_weights" in name)


@each_norm_style
@each_method
def test_they_are_trained_and_saved(make_model, method, tmp_path):
    base = make_model(use_weighted_layer_sum=True)
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(type(base).from_pretrained(tmp_path / "base"), METHODS[method]()).train()
    model(**INPUTS, labels=LABELS).loss.backward()
    assert own(model).shape == (NUM_LAYERS + 1,) and own(model).grad.abs().max() > 0
    randomize(model).eval()
    model.save_pretrained(tmp_path / "adapter")
    expected = model(**INPUTS).logits
    by_hand = PeftModel.from_pretrained(make_model(use_weighted_layer_sum=True), tmp_path / "adapter", "other")
    assert torch.equal(by_hand(**INPUTS).logits, expected)
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(again(**INPUTS).logits, expected)
    with pytest.raises(ValueError, match="use_weighted_layer_sum=True"):
        PeftModel.from_pretrained(make_model(), tmp_path / "adapter")


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name not in WITH_GRID])
def test_every_type_that_has_them_brings_them_back(backbone, tmp_path):
    base, inputs = BACKBONES[backbone](use_weighted_layer_sum=True), make_inputs(backbone)
    base.save_pretrained(tmp_path / "base")
    model = randomize(get_peft_model(type(base).from_pretrained(tmp_path / "base"), METHODS["ipet"]())).eval()
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    assert own(model).shape == (NUM_LAYERS + 1,)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)


@each_norm_style
def test_they_weigh_the_base_models_hidden_states(make_model):
    model = get_peft_model(make_model(use_weighted_layer_sum=True), METHODS["embedding_prompt"]()).eval()
    with torch.no_grad():
        own(model).copy_(torch.randn(NUM_LAYERS + 1))
        outputs = model(**INPUTS, output_hidden_states=True)
        weights = own(model).softmax(0)
        mixed = sum(weight * state for weight, state in zip(weights, outputs.hidden_states, strict=True))
        classifier = model.get_base_model()
        expected = classifier.classifier(classifier.projector(mixed).mean(1))
    torch.testing.assert_close(outputs.logits, expected, atol=1e-5, rtol=1e-5)


def test_each_adapter_has_its_own_and_disabling_gives_the_models():
    base = make_wav2vec2(use_weighted_layer_sum=True)
    plain = base(**INPUTS).logits
    model = randomize(get_peft_model(base, METHODS["parallel_mlp"]())).eval()
    first = model(**INPUTS).logits
    model.add_adapter("second", METHODS["parallel_mlp"]())
    model.set_adapter("second")
    assert torch.equal(model(**INPUTS).logits, plain)
    model.set_adapter("default")
    assert torch.equal(model(**INPUTS).logits, first)
    with model.disable_adapter():
        assert torch.equal(model(**INPUTS).logits, plain)


def test_unload_leaves_the_trained_values_and_nothing_else():
    base = make_wav2vec2(use_weighted_layer_sum=True)
    base(**INPUTS)
    keys, hooks = set(base.state_dict()), count_hooks(base)
    model = randomize(get_peft_model(base, METHODS["ipet"]())).eval()
    trained = own(model).detach().clone()
    unloaded = model.unload()
    assert set(unloaded.state_dict()) == keys and count_hooks(unloaded) == hooks
    assert torch.equal(unloaded.layer_weights, trained)
    assert unloaded(**INPUTS).logits.isfinite().all()


@pytest.mark.parametrize("names, is_trained", [(["classifier", "layer_weights"], True), (["classifier"], False)])
def test_they_can_be_asked_for_or_left_out(names, is_trained):
    model = get_peft_model(make_wav2vec2(use_weighted_layer_sum=True), METHODS["ipet"](modules_to_save=names))
    assert any("layer_weights" in name for name in trainable(model)) == is_trained
    model(**INPUTS, labels=LABELS).loss.backward()


def test_a_failing_forward_pass_leaves_the_models_own_in_place():
    base = make_wav2vec2(use_weighted_layer_sum=True)
    original = base.layer_weights
    model = get_peft_model(base, METHODS["ipet"]())
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 3))
    assert base.layer_weights is original
