"""LoRA and these adapters on one model: LoRA first works, the other way round is told."""

import pytest
import torch
from adapted import logits
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from tiny import METHODS, make, randomize


each_backbone = pytest.mark.parametrize("backbone", ["ast", "wav2vec2", "whisper"])
WAY_OUT = r"Put the other adapter on first: inject_adapter_in_model\(other_config, model, 'other'\)"


def lora(**options):
    return LoraConfig(**{"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False} | options)


@each_backbone
@pytest.mark.parametrize("method", ["ipet", "input_prompt", "time_freq_conv"])
def test_lora_first_works(backbone, method):
    model = inject_adapter_in_model(lora(), make(backbone), "lora").eval()
    with_lora = logits(model, backbone)
    model = get_peft_model(model, METHODS[method](init_weights=True)).eval()
    assert any(isinstance(module, LoraLayer) for module in model.modules())
    if method == "time_freq_conv":  # the others change the output from the start
        torch.testing.assert_close(logits(model, backbone), with_lora)
    assert not torch.allclose(logits(randomize(model), backbone), with_lora)
    with model.disable_adapter():
        assert not torch.allclose(logits(model, backbone), with_lora)  # PEFT disables both


def on_peft_model(model):
    return get_peft_model(get_peft_model(model, METHODS["ipet"]()), lora())


def on_plain_model(model):
    return inject_adapter_in_model(lora(), inject_adapter_in_model(METHODS["ipet"](), model), "lora")


def by_transformers(model):
    model.add_adapter(METHODS["ipet"](), "first")
    model.add_adapter(lora(), "lora")


@each_backbone
@pytest.mark.parametrize("put_on", [on_peft_model, on_plain_model, by_transformers])
@pytest.mark.filterwarnings("ignore:You are trying to modify a model:UserWarning")
def test_lora_that_finds_nothing_is_told_why(backbone, put_on):
    with pytest.raises(ValueError, match=f"not found in the base model.*another method .ipet.*{WAY_OUT}"):
        put_on(make(backbone))


@pytest.mark.parametrize("options", [{"target_modules": "all-linear"}, {"target_modules": ["q_proj", "classifier"]}])
def test_lora_that_is_on_a_part_only_is_told(options):
    model = inject_adapter_in_model(METHODS["parallel_mlp"](modules_to_save=[]), make("wav2vec2"))
    with pytest.warns(UserWarning, match=rf"not on wav2vec2.encoder.layers.0.attention.*{WAY_OUT}"):
        inject_adapter_in_model(lora(**options), model, "lora")


@pytest.mark.filterwarnings("error", "ignore:Already found a `peft_config`:UserWarning")
def test_lora_beside_adapted_layers_is_put_on_in_silence():
    model = inject_adapter_in_model(METHODS["ipet"](layers_to_transform=[0]), make("wav2vec2"))
    inject_adapter_in_model(lora(layers_to_transform=[1, 2], layers_pattern="layers"), model, "lora")
    layers = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    assert layers and all(".layers.0." not in name for name in layers)


def test_a_lora_model_is_refused_with_the_way_out():
    model = get_peft_model(make("ast"), lora(), "lora")
    with pytest.raises(ValueError, match=r"got a PeftModel.*LORA adapters stay: get_peft_model\(model.get_base_model"):
        get_peft_model(model, METHODS["ipet"]())
    both = get_peft_model(model.get_base_model(), METHODS["ipet"](), "new")
    assert logits(both.eval(), "ast").isfinite().all()
