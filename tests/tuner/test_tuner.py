"""What every method does on every backbone: start, gradients, switching off, taking off, hidden states, masks."""

import functools

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny import (
    BACKBONES,
    METHODS,
    NUM_LABELS,
    each_backbone,
    each_method,
    make_ast,
    make_inputs,
    make_wav2vec2,
    randomize,
    trainable,
)

from peft_audio import EmbeddingPromptConfig, IPETConfig, ParallelMLPAdapterConfig
from peft_audio.tuner.encoder_layer import EncoderTunerLayer
from peft_audio.tuner.tuner_layer import HookedTunerLayer, first_tensor


LABELS = torch.tensor([0, 3])


def adapted(backbone, method, **options):
    return get_peft_model(BACKBONES[backbone](), METHODS[method](**options)).eval()


def logits(model, backbone, **inputs):
    with torch.no_grad():
        return model(**(inputs or make_inputs(backbone))).logits


@each_backbone
def test_ipet_starts_as_its_prompts_alone(backbone):
    model = get_peft_model(BACKBONES[backbone](), IPETConfig(num_virtual_tokens=3)).eval()
    prompts = get_peft_model(BACKBONES[backbone](), EmbeddingPromptConfig(num_virtual_tokens=3)).eval()
    own = {name: value for name, value in trainable(model).items() if "prompt" in name}
    for (_, source), (_, target) in zip(own.items(), trainable(prompts).items()):
        target.data.copy_(source.data)
    assert torch.equal(logits(model, backbone), logits(prompts, backbone))


@each_method
def test_autocast_and_low_precision_base(method):
    model = randomize(get_peft_model(make_ast().to(torch.bfloat16), METHODS[method]()))
    layers = [module for module in model.modules() if isinstance(module, HookedTunerLayer)]
    own = [p for layer in layers for part in layer.parts for p in layer.part(part).parameters()]
    assert {parameter.dtype for parameter in own} == ({torch.float32} if own else set())
    assert bool(own) == (method != "linear_probe")
    output = model(input_values=make_inputs("ast")["input_values"].to(torch.bfloat16), labels=LABELS)
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in own)
    full = randomize(adapted("ast", method))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = logits(full, "ast")
    torch.testing.assert_close(mixed.float(), logits(full, "ast"), atol=0.2, rtol=0.1)


def dtypes_under_autocast(model, backbone):
    """The dtype of what every module of the base model gives."""
    seen = {}

    def look(name, module, args, output):
        seen[name.replace(".base_layer", "")] = getattr(first_tensor(output), "dtype", None)

    base = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, module in base.named_modules():
        module.register_forward_hook(functools.partial(look, name))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**make_inputs(backbone))
    return seen


@each_backbone
@each_method
def test_autocast_gives_every_module_s_output_the_dtype_that_it_has_without_adapters(backbone, method):
    model = adapted(backbone, method)
    bare = dtypes_under_autocast(BACKBONES[backbone]().eval(), backbone)
    actual = dtypes_under_autocast(model, backbone)
    # An input prompt's layer is around the module that it prompts, a trained head inside of PEFT's wrapper.
    in_both = bare.keys() & actual.keys()
    assert len(in_both) > 0.8 * len(bare)
    assert {name: actual[name] for name in in_both} == {name: bare[name] for name in in_both}


def test_dropout_acts_in_training_only():
    model = randomize(get_peft_model(make_ast(), IPETConfig(dropout=0.5, prompt_dropout=0.5))).train()
    inputs = make_inputs("ast")
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
    # Every sample has its own: the same clip twice in a batch gives two answers.
    twice = {"input_values": inputs["input_values"][:1].repeat(2, 1, 1)}
    prompts = randomize(get_peft_model(make_ast(), EmbeddingPromptConfig(prompt_dropout=0.5))).train()
    output = prompts(**twice).logits
    assert not torch.allclose(output[0], output[1], atol=1e-4)
    assert torch.equal(model.eval()(**inputs).logits, model(**inputs).logits)


def test_a_trained_front_end_is_left_alone():
    config = ParallelMLPAdapterConfig(modules_to_save=["classifier", "feature_extractor"])
    model = get_peft_model(make_wav2vec2(), config).train()
    model(**make_inputs("wav2vec2"), labels=LABELS).loss.backward()
    gradients = {name: parameter.grad for name, parameter in trainable(model).items()}
    assert any("feature_extractor" in name for name in gradients)
    assert all(gradient is not None for gradient in gradients.values())


def test_a_configuration_serves_several_models():
    config = IPETConfig()
    first = get_peft_model(make_ast(), config)
    second = get_peft_model(make_wav2vec2(num_labels=3), config)
    assert first.peft_config["default"].modules_to_save == ["classifier"]
    assert second.peft_config["default"].modules_to_save == ["projector", "classifier"]
    assert first.peft_config["default"] is config and second.peft_config["default"] is not config
    assert len(first.peft_config["default"].base_settings["id2label"]) == NUM_LABELS


def test_active_adapters_add_up():
    model = get_peft_model(make_ast(), ParallelMLPAdapterConfig(init_weights=False, modules_to_save=[])).eval()
    model.add_adapter("second", ParallelMLPAdapterConfig(init_weights=False, modules_to_save=[]))
    layer = next(module for module in model.modules() if isinstance(module, EncoderTunerLayer))
    tokens, outputs = torch.randn(1, 5, 32), {}
    for names in ("default", "second", ["default", "second"]):
        model.base_model.set_adapter(names)
        with torch.no_grad():
            outputs[str(names)] = layer(tokens)
    layer.enable_adapters(False)
    plain = layer(tokens)
    both = outputs["['default', 'second']"] - plain
    torch.testing.assert_close(both, outputs["default"] + outputs["second"] - 2 * plain, atol=1e-5, rtol=1e-5)


def test_second_adapter_and_deletion():
    model = randomize(adapted("wav2vec2", "ipet"))
    first = logits(model, "wav2vec2")
    model.add_adapter("second", METHODS["ipet"](layers_to_transform=[1], init_weights=False))
    assert torch.equal(logits(model, "wav2vec2"), first)
    model.set_adapter("second")
    second = logits(model, "wav2vec2")
    assert not torch.equal(second, first)
    model.set_adapter("default")
    assert torch.equal(logits(model, "wav2vec2"), first)
    model.delete_adapter("second")
    assert torch.equal(logits(model, "wav2vec2"), first)


@each_method
@pytest.mark.parametrize("backbone", ["ast", "wav2vec2"])
def test_a_base_model_without_weights_takes_adapters_without_any(backbone, method):
    base = BACKBONES[backbone]()
    expected = {name: value.shape for name, value in trainable(get_peft_model(base, METHODS[method]())).items()}
    model = get_peft_model(BACKBONES[backbone]().to("meta"), METHODS[method]())
    assert {name: value.shape for name, value in trainable(model).items()} == expected
    assert all(value.is_meta for value in model.parameters())
