"""Modules that are trained whole: in float32 beside a base model in half precision, found by whole names, in its mode."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny import BACKBONES, METHODS, each_backbone, each_method, make, make_inputs, randomize, trainable

from peft_audio import BottleneckAdapterConfig, IPETConfig, ParallelMLPAdapterConfig, TimeFreqConvAdapterConfig


LABELS = torch.tensor([0, 3])


def in_dtype(inputs, dtype):
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_backbone
def test_what_trains_is_float32_and_moves_as_it_does_alone(backbone, dtype, tmp_path):
    base = make(backbone).to(dtype)
    model = get_peft_model(base, METHODS["ipet"]()).train()
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}
    before = copy.deepcopy(trainable(model))
    optimizer = torch.optim.SGD(trainable(model).values(), lr=1e-4)
    output = model(**in_dtype(make_inputs(backbone), dtype), labels=LABELS)
    assert output.logits.dtype == dtype  # as without adapters
    output.loss.backward()
    optimizer.step()
    for name, parameter in trainable(model).items():
        expected = before[name] - 1e-4 * parameter.grad
        torch.testing.assert_close(parameter, expected, msg=lambda text, name=name: f"{name}: {text}")
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make(backbone).to(dtype), tmp_path)
    for name, parameter in again.named_parameters():
        if name in trainable(model):
            assert parameter.dtype == torch.float32 and torch.equal(parameter, trainable(model)[name])
    with model.disable_adapter():
        plain = model(**in_dtype(make_inputs(backbone), dtype)).logits
    assert plain.dtype == dtype


def test_the_user_may_train_in_half_precision():
    model = get_peft_model(make("wav2vec2").bfloat16(), METHODS["ipet"](), autocast_adapter_dtype=False)
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.bfloat16}
    assert model(**in_dtype(make_inputs("wav2vec2"), torch.bfloat16)).logits.dtype == torch.bfloat16


def test_a_module_inside_gives_what_the_layers_after_it_read():
    names = ["classifier", "feature_projection"]
    model = get_peft_model(make("wav2vec2").bfloat16(), METHODS["parallel_mlp"](modules_to_save=names)).train()
    model(**in_dtype(make_inputs("wav2vec2"), torch.bfloat16), labels=LABELS).loss.backward()
    assert all(parameter.grad is not None for name, parameter in trainable(model).items() if "feature_proj" in name)


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "backbone, name",
    [
        ("ast", "embeddings"),
        ("vit", "embeddings"),
        ("wav2vec2", "projection"),
        ("hubert", "projection"),
        ("whisper", "layer_norm"),
        ("wav2vec2", "feature_projection.projection"),
    ],
)
def test_a_name_means_the_modules_of_that_name(backbone, name, tmp_path):
    model = BACKBONES[backbone]()
    meant = {path for path, _ in model.named_modules() if path == name or path.endswith("." + name)}
    model = randomize(get_peft_model(model, METHODS["parallel_mlp"](modules_to_save=[name], layers_to_transform=[])))
    wrapped = {
        path.removesuffix(".modules_to_save.default").removeprefix("base_model.model.")
        for path, _ in model.named_modules()
        if path.endswith(".modules_to_save.default")
    }
    assert wrapped == meant
    model.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(BACKBONES[backbone](), tmp_path)
    inputs = make_inputs(backbone)
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)


def test_names_within_adapted_layers_are_refused_and_nothing_has_changed():
    base = make("whisper")
    keys = set(base.state_dict())
    with pytest.raises(ValueError, match="apart from each other"):
        get_peft_model(base, METHODS["ipet"](modules_to_save=["final_layer_norm"]))
    assert set(base.state_dict()) == keys


# ---- mode, fields, other adapters ------------------------------------------------------------------------------------


@each_method
@pytest.mark.parametrize("is_training", [True, False])
def test_adapters_take_the_mode_of_what_they_are_put_on(method, is_training):
    def modes(model):  # of frozen batch norms it is another one, always
        modules = [
            module for module in model.get_base_model().modules() if not isinstance(module, torch.nn.BatchNorm1d)
        ]
        return {module.training for module in modules}

    base = make("wav2vec2").train(is_training)
    model = get_peft_model(base, METHODS[method]())
    assert modes(model) == {is_training}
    model.add_adapter("second", METHODS[method]())
    assert modes(model) == {is_training}


def test_an_adapter_on_a_model_in_evaluation_mode_is_not_random():
    model = get_peft_model(make("wav2vec2").eval(), IPETConfig(dropout=0.5, init_weights=False))
    inputs = make_inputs("wav2vec2")
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    "config", [ParallelMLPAdapterConfig, BottleneckAdapterConfig, TimeFreqConvAdapterConfig], ids=lambda c: c.__name__
)
def test_a_width_given_twice_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="`bottleneck_dim` must be left out where `reduction_factor` is given"):
        config(bottleneck_dim=8, reduction_factor=4)
    config(reduction_factor=4).save_pretrained(tmp_path)
    assert config.from_pretrained(tmp_path).reduction_factor == 4


def test_the_configuration_is_the_callers_object(tmp_path):
    config = METHODS["ipet"]()
    model = get_peft_model(make("wav2vec2"), config)
    assert model.peft_config["default"] is config
    config.revision = "v2"
    model.save_pretrained(tmp_path)
    assert type(config).from_pretrained(tmp_path).revision == "v2"
    # For another model it starts from what was given.
    other = get_peft_model(make("ast"), config)
    assert other.peft_config["default"].modules_to_save == ["classifier"] != config.modules_to_save
    assert other.peft_config["default"].base_settings["model_type"] != config.base_settings["model_type"]


def test_a_configuration_that_does_not_fit_is_left_as_it_was():
    config = METHODS["ipet"](layers_to_transform=[99])
    before = copy.deepcopy(vars(config))
    with pytest.raises(ValueError, match="layers_to_transform"):
        get_peft_model(make("wav2vec2"), config)
    assert vars(config) == before


def test_a_second_method_on_the_same_model_is_refused():
    base = make("wav2vec2")
    model = get_peft_model(base, METHODS["ipet"]())
    logits = model(**make_inputs("wav2vec2")).logits
    with pytest.raises(ValueError, match=r"adapters of another method \(ipet\).*unload\(\)"):
        get_peft_model(base, METHODS["parallel_mlp"]())
    with pytest.raises(ValueError, match="must be a base model, got a PeftModel"):
        get_peft_model(model, METHODS["ipet"]())
    assert torch.equal(model(**make_inputs("wav2vec2")).logits, logits)
    get_peft_model(model.unload(), METHODS["parallel_mlp"]())
