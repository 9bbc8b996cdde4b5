"""Validation of every field, when a configuration is made and when it meets a model."""

import copy
import pickle

import pytest
import torch
from peft import PeftConfig, get_peft_config, get_peft_model
from tiny import METHODS, each_method, make_ast, make_inputs, make_wav2vec2

from peft_audio import EmbeddingPromptConfig, IPETConfig, ParallelMLPAdapterConfig


SHARED = [
    ("layers_to_transform", 1.5, "integer"),
    ("layers_to_transform", True, "integer"),
    ("layers_to_transform", [0, "1"], "integer"),
    ("layers_to_transform", [1, 1], "different"),
    ("modules_to_save", "classifier", "list of module names"),
    ("modules_to_save", ["classifier", 3], "list of module names"),
    ("modules_to_save", [""], "list of module names"),
    ("init_weights", "yes", "True or False"),
    ("inference_mode", 0, "True or False"),
    ("base_settings", [1], "dictionary"),
]
PROMPT = [
    ("num_virtual_tokens", 0, "positive integer"),
    ("num_virtual_tokens", 2.0, "positive integer"),
    ("num_virtual_tokens", True, "positive integer"),
    ("prompt_dropout", 1.0, r"\[0, 1\)"),
    ("prompt_dropout", -0.1, r"\[0, 1\)"),
    ("prompt_init", "normal", "'xavier_uniform', 'vpt'"),
]
ADAPTER = [
    ("bottleneck_dim", 0, "positive integer"),
    ("bottleneck_dim", "64", "positive integer"),
    ("reduction_factor", 0.5, "at least 1"),
    ("reduction_factor", "4", "at least 1"),
    ("activation", "rleu", "gelu"),
    ("activation", None, "gelu"),
    ("scaling", float("nan"), "finite"),
    ("scaling", float("inf"), "finite"),
    ("scaling", 0.0, "other than 0"),
    ("scaling", None, "finite"),
    ("learn_scaling", 1, "True or False"),
    ("dropout", 1.5, r"\[0, 1\)"),
    ("adapter_input", "raw", "'normalized', 'residual'"),
    ("use_bias", "no", "True or False"),
    ("spatial_adapter", None, "True or False"),
    ("spatial_bottleneck_dim", 0, "positive integer"),
    ("spatial_bottleneck_dim", 8, "spatial_adapter=True"),
]
CASES = (
    [(EmbeddingPromptConfig, *case) for case in SHARED + PROMPT]
    + [(ParallelMLPAdapterConfig, *case) for case in SHARED + ADAPTER]
    + [(IPETConfig, *case) for case in SHARED + PROMPT + ADAPTER]
)


@pytest.mark.parametrize("config_cls, field, value, rule", CASES)
def test_a_wrong_value_is_refused_by_name(config_cls, field, value, rule):
    with pytest.raises(ValueError, match=rule) as error:
        config_cls(**{field: value})
    assert f"`{field}`" in str(error.value) and repr(value) in str(error.value)


def test_the_papers_defaults():
    config = IPETConfig()
    assert (config.num_virtual_tokens, config.prompt_dropout, config.prompt_init) == (8, 0.0, "xavier_uniform")
    assert (config.bottleneck_dim, config.activation, config.use_bias) == (64, "relu", True)
    assert (config.scaling, config.dropout, config.adapter_input) == (0.1, 0.1, "residual")
    adapter = ParallelMLPAdapterConfig()
    assert (adapter.scaling, adapter.dropout, adapter.adapter_input) == (1.0, 0.0, "normalized")


@each_method
def test_round_trips(method, tmp_path):
    config = METHODS[method](layers_to_transform=[0, -1])
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path) == config
    assert get_peft_config(config.to_dict()) == config
    assert pickle.loads(pickle.dumps(config)) == config == copy.deepcopy(config)
    assert config.peft_type.value == config.peft_type.name


def test_tuples_become_lists():
    config = IPETConfig(layers_to_transform=(), modules_to_save=("classifier",))
    assert (config.layers_to_transform, config.modules_to_save) == ([], ["classifier"])


MISFITS = [
    (make_ast, {"layers_to_transform": 3}, "between -3 and 2"),
    (make_ast, {"layers_to_transform": [-4]}, "between -3 and 2"),
    (make_ast, {"layers_to_transform": [2, -1]}, "name one layer"),
    (make_ast, {"modules_to_save": ["classifier", "projector"]}, "'projector'"),
    (make_ast, {"reduction_factor": 100}, "hidden size"),
    (make_wav2vec2, {"prompt_init": "vpt"}, "no patch size"),
]


@pytest.mark.parametrize("make_model, options, rule", MISFITS)
def test_a_configuration_that_does_not_fit_leaves_the_model_alone(make_model, options, rule):
    model = make_model()
    keys, flags = list(model.state_dict()), [parameter.requires_grad for parameter in model.parameters()]
    backbone = "ast" if make_model is make_ast else "wav2vec2"
    before = model(**make_inputs(backbone)).logits
    with pytest.raises(ValueError, match=rule):
        get_peft_model(model, IPETConfig(**options))
    assert list(model.state_dict()) == keys and not hasattr(model, "peft_config")
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert torch.equal(model(**make_inputs(backbone)).logits, before)


@pytest.mark.parametrize("name", ["classifier", "layers", "attention", "prompt", "ipet_prompt"])
def test_adapter_names_that_clash_are_refused(name):
    with pytest.raises(ValueError, match="adapter_name"):
        get_peft_model(make_ast(), IPETConfig(), adapter_name=name)
    model = get_peft_model(make_ast(), IPETConfig())
    with pytest.raises(ValueError, match="adapter_name"):
        model.add_adapter(name, IPETConfig())
    assert list(model.peft_config) == ["default"]


INTERVALS = [("xavier_uniform", (6 / (32 * 50 + 32)) ** 0.5), ("vpt", (6 / (3 * 16**2 + 32)) ** 0.5)]


@pytest.mark.parametrize("prompt_init, bound", INTERVALS)
def test_initial_prompts_fill_the_papers_interval(prompt_init, bound):
    model = get_peft_model(make_ast(), EmbeddingPromptConfig(num_virtual_tokens=50, prompt_init=prompt_init))
    values = torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "prompt" in name])
    assert 0.98 * bound < values.abs().max() <= bound
    assert values.std() == pytest.approx(bound / 3**0.5, rel=0.05)
