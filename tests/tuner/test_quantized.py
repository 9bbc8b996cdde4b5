"""Adapters on quantized backbones: bitsandbytes in 8 and 4 bits, torchao in 8 bits."""

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, prepare_model_for_kbit_training
from tiny import BACKBONES, METHODS, make_inputs, randomize, trainable
from torch import nn
from transformers import (
    AutoModelForAudioClassification,
    BitsAndBytesConfig,
    TorchAoConfig,
    Trainer,
    TrainingArguments,
)

from peft_audio import AutoPeftModelForAudioClassification
from peft_audio.tuner.tuner_layer import HookedTunerLayer


LABELS = torch.tensor([0, 3])
# transformers quantises the head as well, unless it is told not to.
HEAD = ["projector", "classifier"]
WAY_OUT = "quantized.*llm_int8_skip_modules=.*'classifier'.*modules_to_not_convert=.*'classifier'"
# bitsandbytes lays 4-bit weights out anew for inference on some processors, in blocks of 64 inputs and 32 outputs.
SIZES = {
    "ast": {"hidden_size": 64, "intermediate_size": 128},
    "wav2vec2": {"hidden_size": 64, "intermediate_size": 128, "conv_dim": (16, 64)},
}


def bitsandbytes_config(**options):
    pytest.importorskip("bitsandbytes", reason="8-bit and 4-bit weights need bitsandbytes")
    return BitsAndBytesConfig(**options)


def torchao_config(modules_to_not_convert):
    quantization = pytest.importorskip("torchao.quantization", reason="int8 tensors need torchao")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig(), modules_to_not_convert=modules_to_not_convert)


CONFIGS = {
    "bitsandbytes_int8": lambda skip: bitsandbytes_config(load_in_8bit=True, llm_int8_skip_modules=skip),
    "bitsandbytes_nf4": lambda skip: bitsandbytes_config(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=skip
    ),
    "torchao_int8": torchao_config,
}
# transformers' TorchAoConfig asks for input embeddings, which wav2vec2 does not have; see `load`.
LOADABLE = [
    (backbone, kind) for backbone in SIZES for kind in CONFIGS if (backbone, kind) != ("wav2vec2", "torchao_int8")
]
each_backbone = pytest.mark.parametrize("backbone", SIZES)
each_kind = pytest.mark.parametrize("kind", CONFIGS)
each_loadable = pytest.mark.parametrize(("backbone", "kind"), LOADABLE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of a tiny base model in full precision, by backbone."""
    folders = {backbone: tmp_path_factory.mktemp(backbone) for backbone in SIZES}
    for backbone, folder in folders.items():
        BACKBONES[backbone](**SIZES[backbone]).save_pretrained(folder)
    return folders


def load(folder, kind=None, skip=HEAD):
    """The base model, its linear maps quantized but for the modules in `skip`; all of it in full precision at None."""
    if kind is None:
        return AutoModelForAudioClassification.from_pretrained(folder)
    config = CONFIGS[kind](skip)
    if kind != "torchao_int8" or "wav2vec2" not in folder.name:
        return AutoModelForAudioClassification.from_pretrained(folder, quantization_config=config)
    model = load(folder)
    pytest.importorskip("torchao.quantization").quantize_(
        model,
        config.quant_type,
        lambda module, name: isinstance(module, nn.Linear) and not name.startswith(tuple(skip)),
    )
    return model


def load_dequantized(folder, quantized):
    """The base model in full precision with the weights of `quantized`, read off from its answers to unit vectors."""
    model = load(folder)
    with torch.no_grad():
        for name, linear in quantized.train().named_modules():
            if isinstance(linear, nn.Linear):
                zero, units = torch.zeros(1, linear.in_features), torch.eye(linear.in_features)
                model.get_submodule(name).weight.copy_((linear(units) - linear(zero)).T)
    return model


def adapted(model, method, **options):
    torch.manual_seed(0)
    return randomize(get_peft_model(model, METHODS[method](**options)))


def logits(model, backbone):
    with torch.no_grad():
        return model(**make_inputs(backbone)).logits


def gradients(model, backbone):
    model(**make_inputs(backbone), labels=LABELS).loss.backward()
    return {name: parameter.grad for name, parameter in trainable(model).items()}


@each_kind
@each_backbone
def test_all_linear_maps_but_the_head_are_rounded(backbone, kind, folders):
    full = load(folders[backbone])
    rounded = load_dequantized(folders[backbone], load(folders[backbone], kind))
    for name, linear in full.named_modules():
        if isinstance(linear, nn.Linear):
            error = (rounded.get_submodule(name).weight - linear.weight).abs().max() / linear.weight.abs().max()
            assert (error < 1e-5) if name.startswith(tuple(HEAD)) else (1e-4 < error < 0.2), name


@each_kind
@pytest.mark.parametrize(
    ("backbone", "method"),
    [
        ("ast", "ipet"),
        ("ast", "parallel_mlp"),
        ("ast", "time_freq_conv"),
        ("ast", "bottleneck_parallel"),
        ("wav2vec2", "joint"),
        ("wav2vec2", "bottleneck_parallel"),
    ],
)
def test_gradients_are_those_of_the_dequantized_model(backbone, method, kind, folders):
    base = load(folders[backbone], kind)
    twin = adapted(load_dequantized(folders[backbone], base), method).train()
    model = adapted(base, method).train()
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}
    expected, actual = gradients(twin, backbone), gradients(model, backbone)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-3, msg=name)
        assert gradient.abs().max() > 0, name


@each_kind
@each_backbone
def test_a_training_step_lowers_the_loss_and_leaves_the_base_alone(backbone, kind, folders):
    model = adapted(load(folders[backbone], kind), "ipet").train()
    with model.disable_adapter():
        base = logits(model, backbone)
    optimizer = torch.optim.SGD(trainable(model).values(), lr=1e-3)
    first = model(**make_inputs(backbone), labels=LABELS).loss
    first.backward()
    optimizer.step()
    assert model(**make_inputs(backbone), labels=LABELS).loss < first
    with model.disable_adapter():
        assert torch.equal(logits(model, backbone), base)


@each_kind
@each_backbone
def test_an_adapter_moves_between_the_quantized_and_the_full_model(backbone, kind, folders, tmp_path):
    base = load(folders[backbone], kind)
    twin = load_dequantized(folders[backbone], base)
    model = adapted(base, "bottleneck_parallel").eval()
    tensors = get_peft_model_state_dict(model)
    expected = logits(model, backbone)
    model.save_pretrained(tmp_path / "quantized")

    full = PeftModel.from_pretrained(load(folders[backbone]), tmp_path / "quantized")
    same_weights = PeftModel.from_pretrained(twin, tmp_path / "quantized")
    full.save_pretrained(tmp_path / "full")
    back = PeftModel.from_pretrained(load(folders[backbone], kind), tmp_path / "full")
    for again in (full, same_weights, back):
        loaded = get_peft_model_state_dict(again)
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert torch.equal(logits(back, backbone), expected)

    # In training mode bitsandbytes rounds the weights only; in evaluation, activations as well.
    fresh = PeftModel.from_pretrained(load(folders[backbone], kind), tmp_path / "full").train()
    torch.testing.assert_close(logits(fresh, backbone), logits(same_weights, backbone), atol=1e-4, rtol=1e-4)
    # Rounding to 8 bits is a small change of the logits, the adapter a large one.
    if kind.endswith("int8"):
        error, effect = expected - logits(full, backbone), expected - logits(load(folders[backbone]), backbone)
        assert 0 < error.norm() < 0.1 * effect.norm()


@each_loadable
def test_the_one_line_loader_takes_a_quantization(backbone, kind, folders, tmp_path):
    model = adapted(load(folders[backbone], kind), "ipet").eval()
    expected = logits(model, backbone)
    model.save_pretrained(tmp_path)
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path, quantization_config=CONFIGS[kind](HEAD))
    assert again.get_base_model().is_quantized
    assert torch.equal(logits(again, backbone), expected)


@each_kind
@each_backbone
def test_a_quantized_head_that_is_to_be_trained_is_refused_with_the_way_out(backbone, kind, folders):
    model = load(folders[backbone], kind, skip=["none of them"])
    with pytest.raises(ValueError, match=WAY_OUT):
        get_peft_model(model, METHODS["ipet"]())
    assert not any(isinstance(module, HookedTunerLayer) for module in model.modules())


@each_loadable
def test_the_one_line_loader_refuses_a_quantized_head_with_the_way_out(backbone, kind, folders, tmp_path):
    adapted(load(folders[backbone]), "ipet").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=WAY_OUT):
        AutoPeftModelForAudioClassification.from_pretrained(tmp_path, quantization_config=CONFIGS[kind](None))


@each_kind
@each_backbone
def test_a_quantized_head_serves_when_it_is_not_trained(backbone, kind, folders):
    model = adapted(load(folders[backbone], kind, skip=["none of them"]), "ipet", modules_to_save=[]).train()
    names = trainable(model).keys()
    assert names and all("ipet_" in name for name in names)
    assert all(gradient.abs().max() > 0 for gradient in gradients(model, backbone).values())


@each_backbone
@pytest.mark.parametrize("kind", ["bitsandbytes_int8", "bitsandbytes_nf4"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_preparing_for_kbit_training_keeps_the_gradients(backbone, kind, use_reentrant, folders):
    expected = gradients(adapted(load(folders[backbone], kind), "ipet").train(), backbone)
    prepared = prepare_model_for_kbit_training(
        load(folders[backbone], kind), gradient_checkpointing_kwargs={"use_reentrant": use_reentrant}
    )
    assert prepared.is_gradient_checkpointing
    actual = gradients(adapted(prepared, "ipet").train(), backbone)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("kind", ["bitsandbytes_int8", "bitsandbytes_nf4"])
@each_backbone
def test_adapters_are_floats_on_a_base_in_bfloat16(backbone, kind, autocast, folders):
    base = AutoModelForAudioClassification.from_pretrained(
        folders[backbone], quantization_config=CONFIGS[kind](HEAD), dtype=torch.bfloat16
    )
    model = get_peft_model(base, METHODS["bottleneck_parallel"](), autocast_adapter_dtype=autocast)
    own = {name: value for name, value in trainable(randomize(model).train()).items() if "bottleneck_adapter_" in name}
    # PEFT trains in float32 unless it is told to take the precision of the base model, here that of its norms.
    assert {value.dtype for value in own.values()} == {torch.float32 if autocast else torch.bfloat16}
    values = make_inputs(backbone)["input_values"].to(torch.bfloat16)
    output = model(input_values=values, labels=LABELS)
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    assert all(value.grad.abs().max() > 0 for value in own.values())


@each_loadable
def test_the_trainer_takes_the_model(backbone, kind, folders, tmp_path):
    model = adapted(load(folders[backbone], kind), "ipet")
    before = {name: value.detach().clone() for name, value in trainable(model).items()}
    clips = [
        {"input_values": values, "labels": label} for values, label in zip(*make_inputs(backbone).values(), LABELS)
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, learning_rate=1e-2, report_to=[], disable_tqdm=True, use_cpu=True
    )
    Trainer(model=model, args=arguments, train_dataset=clips).train()
    assert not any(torch.equal(value, before[name]) for name, value in trainable(model).items())
