"""Mean-token pooling of an AST: what it computes, and how it comes back with an adapter."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from ssast import SMALL, make_ssast, randomize_head
from tiny import METHODS, count_hooks, make, make_ast, make_inputs, make_wav2vec2, randomize
from transformers import ASTForAudioClassification

from peft_audio import AutoPeftModelForAudioClassification, ast_from_ssast, use_mean_token_pooling


@pytest.fixture
def base_folder(tmp_path):
    ast_from_ssast(make_ssast(), **SMALL).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load(folder):
    return ASTForAudioClassification.from_pretrained(folder)


@pytest.mark.parametrize("bare", [False, True])
@torch.no_grad()
def test_the_mean_of_the_patch_tokens_is_pooled(bare):
    model, inputs = make_ast(bare=bare), make_inputs("ast")
    states = model.base_model(**inputs).last_hidden_state
    assert use_mean_token_pooling(model) is model
    expected = states[:, 2:].mean(1)
    output = model.base_model(**inputs)
    torch.testing.assert_close(output.pooler_output, expected)
    assert torch.equal(output["pooler_output"], output.pooler_output) and torch.equal(output[0], states)
    as_tuple = model.base_model(**inputs, return_dict=False, output_hidden_states=True)
    assert torch.equal(as_tuple[0], states) and torch.equal(as_tuple[1], output.pooler_output) and len(as_tuple) == 3
    if not bare:
        norm, dense = model.classifier.layernorm, model.classifier.dense
        expected = dense(torch.nn.functional.layer_norm(expected, (32,), norm.weight, norm.bias, 1e-5))
        torch.testing.assert_close(model(**inputs).logits, expected)
        torch.testing.assert_close(model(**inputs, return_dict=False)[0], expected)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_pool_too(clone):
    model, inputs = use_mean_token_pooling(make_ast()), make_inputs("ast")
    other = clone(model)
    assert torch.equal(other(**inputs).logits, model(**inputs).logits)
    assert count_hooks(use_mean_token_pooling(other)) == count_hooks(model) == 1


@torch.no_grad()
def test_a_saved_model_needs_the_call_again(base_folder):
    model = randomize_head(ast_from_ssast(make_ssast(), **SMALL))
    model.save_pretrained(base_folder)
    plain, inputs = load(base_folder), torch.randn(2, 64, 32)
    assert not torch.allclose(plain(inputs).logits, model(inputs).logits)
    with pytest.raises(ValueError, match=r"Call peft_audio.use_mean_token_pooling\(model\) first"):
        get_peft_model(plain, METHODS["ipet"]())
    assert torch.equal(use_mean_token_pooling(plain)(inputs).logits, model(inputs).logits)


@pytest.mark.parametrize("method", ["ipet", "embedding_prompt", "time_freq_conv", "linear_probe"])
@torch.no_grad()
def test_it_comes_back_with_an_adapter(method, base_folder, tmp_path):
    model = get_peft_model(use_mean_token_pooling(load(base_folder)), METHODS[method]())
    randomize(model).eval().save_pretrained(tmp_path / "adapter")
    inputs = torch.randn(2, 64, 32)
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(again(inputs).logits, model(inputs).logits)
    by_hand = PeftModel.from_pretrained(use_mean_token_pooling(load(base_folder)), tmp_path / "adapter")
    assert torch.equal(by_hand(inputs).logits, model(inputs).logits)


def test_it_is_put_on_a_base_model_that_was_saved_without(tmp_path):
    make_ast().save_pretrained(tmp_path / "base")
    model = get_peft_model(use_mean_token_pooling(load(tmp_path / "base")), METHODS["ipet"]())
    randomize(model).eval().save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(again(**make_inputs("ast")).logits, model(**make_inputs("ast")).logits)


def test_a_base_model_without_is_refused(base_folder, tmp_path):
    model = get_peft_model(use_mean_token_pooling(load(base_folder)), METHODS["ipet"]())
    model.save_pretrained(tmp_path / "adapter")
    plain = load(base_folder)
    with pytest.raises(ValueError, match="was loaded without it"):
        PeftModel.from_pretrained(plain, tmp_path / "adapter")
    plain.config.mean_token_pooling = False
    keys = list(plain.state_dict())
    message = "mean_token_pooling=True, but .*mean_token_pooling=False.*use_mean_token_pooling"
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(plain, tmp_path / "adapter")
    assert list(plain.state_dict()) == keys


def test_an_adapter_trained_without_refuses_a_model_with(tmp_path):
    get_peft_model(make_ast(), METHODS["ipet"]()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="mean_token_pooling=False, but .*mean_token_pooling=True"):
        PeftModel.from_pretrained(use_mean_token_pooling(make_ast()), tmp_path)


def test_adapters_of_peft_itself_get_it_from_the_base_model(base_folder, tmp_path):
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"])
    model = randomize(get_peft_model(use_mean_token_pooling(load(base_folder)), config)).eval()
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    inputs = torch.randn(2, 64, 32)
    assert torch.equal(again(inputs).logits, model(inputs).logits)


@pytest.mark.parametrize("make_other", [make_wav2vec2, lambda: make("vit")])
def test_other_models_are_refused(make_other):
    with pytest.raises(TypeError, match=f"got {type(make_other()).__name__}"):
        use_mean_token_pooling(make_other())
    with pytest.raises(TypeError, match="PeftModel"):
        use_mean_token_pooling(get_peft_model(make_ast(), METHODS["ipet"]()))
