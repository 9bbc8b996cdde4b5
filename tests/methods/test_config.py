"""Validation of every field, when a configuration is made and when it meets a model."""

import copy
import json
import pickle

import pytest
import torch
from peft import PeftConfig, get_peft_config, get_peft_model
from tiny import METHODS, NOT_IN_LAYERS, each_method, make, make_ast, make_inputs, make_wav2vec2

from peft_audio import (
    BottleneckAdapterConfig,
    EmbeddingPromptConfig,
    InputPromptConfig,
    IPETConfig,
    ParallelMLPAdapterConfig,
    SideNetworkConfig,
    TimeFreqConvAdapterConfig,
)
from peft_audio.backbones.table import resolve


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
BOTTLENECK = [
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
    ("dropout", 1.5, r"\[0, 1\)"),
]
PARALLEL = [
    ("learn_scaling", 1, "True or False"),
    ("adapter_input", "raw", "'normalized', 'residual'"),
    ("use_bias", "no", "True or False"),
    ("spatial_adapter", None, "True or False"),
    ("spatial_bottleneck_dim", 0, "positive integer"),
    ("spatial_bottleneck_dim", 8, "spatial_adapter=True"),
]
CONV = [
    ("attention_kernel", (1, 2), "odd"),
    ("attention_kernel", (0, 1), "odd"),
    ("attention_kernel", (1, 3, 1), "pair"),
    ("mlp_kernel", 3, "pair"),
    ("mlp_kernel", "time", "'auto'"),
    ("mlp_kernel", (1.0, 3), "odd"),
    ("use_bias", "no", "True or False"),
    ("adapter_input", "raw", "'normalized', 'residual'"),
]
SITES = [
    ("block", "lstm", "'bottleneck', 'conformer'"),
    ("sites", "mlp", "a tuple of"),
    ("sites", (), "a tuple of"),
    ("sites", ("mlp", "mlp"), "a tuple of"),
    ("sites", ("mlp", "head"), "a tuple of"),
    ("placement", "before", "'parallel', 'sequential'"),
    ("residual", "yes", "True or False"),
    ("conv_kernel", 0, "positive integer"),
    ("conv_kernel", 5, "has no convolution"),
    ("train_layer_norms", 1, "True or False"),
]
SIDE = [
    ("reduction_factor", None, "at least 1"),
    ("reduction_factor", 0.5, "at least 1"),
    ("block", "lstm", "'mlp', 'conv', 'attention'"),
    ("gate", "matrix", "'scalar', 'vector'"),
    ("every_nth_layer", 0, "positive integer"),
    ("activation", "rleu", "gelu"),
    ("dropout", 1.0, r"\[0, 1\)"),
]
INPUT = [
    ("prompt_size", 0, "positive integer"),
    ("prompt_size", 2.5, "positive integer"),
    ("layers_to_transform", 1, "not to encoder layers"),
    ("layers_to_transform", [], "not to encoder layers"),
]
CASES = (
    [(EmbeddingPromptConfig, *case) for case in SHARED + PROMPT]
    + [(ParallelMLPAdapterConfig, *case) for case in SHARED + BOTTLENECK + PARALLEL]
    + [(IPETConfig, *case) for case in SHARED + PROMPT + BOTTLENECK + PARALLEL]
    + [(TimeFreqConvAdapterConfig, *case) for case in SHARED + BOTTLENECK + CONV]
    + [(BottleneckAdapterConfig, *case) for case in SHARED + BOTTLENECK + SITES]
    + [(SideNetworkConfig, *case) for case in SHARED + SIDE]
    + [(InputPromptConfig, *case) for case in SHARED + INPUT]
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
    conv = TimeFreqConvAdapterConfig()
    assert (conv.bottleneck_dim, conv.activation, conv.use_bias, conv.scaling) == (36, "gelu", False, 1.0)
    block = BottleneckAdapterConfig()
    assert (block.bottleneck_dim, block.activation, block.sites, block.placement) == (64, "gelu", ("mlp",), "parallel")
    assert InputPromptConfig().prompt_size == 10
    side = SideNetworkConfig()
    assert (side.reduction_factor, side.block, side.gate, side.every_nth_layer) == (8, "mlp", "scalar", 1)


def test_a_conformer_has_its_own_activation_and_a_convolution_somewhere_to_act():
    with pytest.raises(ValueError, match="`activation` .*SiLU.*'relu'"):
        BottleneckAdapterConfig(block="conformer", activation="relu")
    with pytest.raises(ValueError, match="`mlp_kernel` must be a kernel where `attention_kernel` is None"):
        TimeFreqConvAdapterConfig(attention_kernel=None, mlp_kernel=None)


def test_kernels_of_every_backbone():
    chosen = {"attention": (1, 3), "mlp": (3, 1)}
    assert TimeFreqConvAdapterConfig().kernels(resolve(make_ast())) == chosen
    assert TimeFreqConvAdapterConfig().kernels(resolve(make("vit"))) == chosen
    chosen = {"attention": (1, 3), "mlp": (1, 3)}
    assert TimeFreqConvAdapterConfig().kernels(resolve(make_wav2vec2())) == chosen
    assert TimeFreqConvAdapterConfig().kernels(resolve(make("whisper"))) == chosen


@each_method
def test_round_trips(method, tmp_path):
    config = METHODS[method](**({} if method in NOT_IN_LAYERS else {"layers_to_transform": [0, -1]}))
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path) == config
    assert get_peft_config(config.to_dict()) == config
    assert pickle.loads(pickle.dumps(config)) == config == copy.deepcopy(config)
    assert config.peft_type.value == config.peft_type.name


def test_tuples_become_lists():
    config = IPETConfig(layers_to_transform=(), modules_to_save=("classifier",))
    assert (config.layers_to_transform, config.modules_to_save) == ([], ["classifier"])


NO_FREQUENCY = "`mlp_kernel` must be .*wav2vec2, whose tokens are frames of time without a frequency axis"
MISFITS = [
    ("ast", IPETConfig, {"layers_to_transform": 3}, "between -3 and 2"),
    ("ast", IPETConfig, {"layers_to_transform": [-4]}, "between -3 and 2"),
    ("ast", IPETConfig, {"layers_to_transform": [2, -1]}, "name one layer"),
    ("ast", IPETConfig, {"modules_to_save": ["classifier", "projector"]}, "'projector'"),
    ("ast", IPETConfig, {"reduction_factor": 100}, "hidden size"),
    ("ast", SideNetworkConfig, {"reduction_factor": 33}, r"at most the hidden size \(32\)"),
    ("wav2vec2", IPETConfig, {"prompt_init": "vpt"}, "no patch size"),
    ("wav2vec2", TimeFreqConvAdapterConfig, {"mlp_kernel": (3, 1)}, NO_FREQUENCY),
    ("ast", InputPromptConfig, {"prompt_size": 19}, r"at most half of .*\(46, 36\)"),
    ("whisper", InputPromptConfig, {"prompt_size": 7}, r"at most half of .*\(12, 28\)"),
    (
        "wav2vec2",
        BottleneckAdapterConfig,
        {"sites": ("attention",), "train_layer_norms": True},
        "`train_layer_norms` must be False .* no norm in front of attention",
    ),
]


@pytest.mark.parametrize("backbone, config_cls, options, rule", MISFITS)
def test_a_configuration_that_does_not_fit_leaves_the_model_alone(backbone, config_cls, options, rule):
    model = make(backbone)
    keys, flags = list(model.state_dict()), [parameter.requires_grad for parameter in model.parameters()]
    before = model(**make_inputs(backbone)).logits
    with pytest.raises(ValueError, match=rule):
        get_peft_model(model, config_cls(**options))
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


@each_method
def test_a_dictionary_of_the_fields_is_what_json_has(method):
    fields = {
        name: value for name, value in METHODS[method]().to_dict().items() if name not in ("peft_type", "task_type")
    }
    assert json.loads(json.dumps(fields)) == fields
