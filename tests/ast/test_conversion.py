"""ASTs from image models and from SSAST checkpoints, against the models they come from and SSAST's forward."""

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import save_file
from ssast import HEADS, SMALL, WIDTH, make_ssast, randomize_head, ssast_forward
from tiny import NUM_LABELS, make, make_ast, make_wav2vec2, randomize
from torch.nn import functional
from transformers import (
    ASTForAudioClassification,
    DeiTForImageClassificationWithTeacher,
    ViTForMaskedImageModeling,
)

from peft_audio import IPETConfig, ast_from_ssast, ast_from_vit


# The input that has the grid of the tiny image models: 24 x 24 pixels, 3 x 3 patches.
SAME_INPUT = {"max_length": 24, "num_mel_bins": 24, "time_stride": 8, "frequency_stride": 8}
each_image_model = pytest.mark.parametrize("architecture", ["vit", "deit"])


def make_image_model(architecture, **options):
    return randomize(make(architecture, **options))


def grey_image(spectrogram, num_channels=3):
    """Spectrograms `(batch, time, frequency)` as images of rows = frequency, columns = time."""
    return spectrogram.transpose(1, 2).unsqueeze(1).expand(-1, num_channels, -1, -1)


def image_model_states(model, image):
    """Last hidden state of the image model; a class token of its own is there twice, as in an AST."""
    trunk = model.base_model
    tokens = trunk.embeddings(image)
    if not hasattr(trunk.embeddings, "distillation_token"):
        tokens = torch.cat([tokens[:, :1], tokens], dim=1)
    for layer in trunk.layers:
        tokens = layer(tokens)
    return trunk.layernorm(tokens)


def position_grid(ast):
    embeddings = ast.base_model.embeddings
    positions = embeddings.position_embeddings.detach()[0]
    return positions[2:].T.unflatten(1, embeddings.get_shape(ast.config)), positions[:2]


# ---- images ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_deit_and_ast_agree_on_a_grey_image():
    deit, spectrogram = make_image_model("deit"), torch.randn(2, 24, 24)
    actual = ast_from_vit(deit, **SAME_INPUT).base_model(spectrogram)
    expected = deit.base_model(grey_image(spectrogram)).last_hidden_state
    torch.testing.assert_close(actual.last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(actual.pooler_output, expected[:, :2].mean(1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_vits_class_token_is_there_twice():
    vit, spectrogram = make_image_model("vit"), torch.randn(2, 24, 24)
    actual = ast_from_vit(vit, **SAME_INPUT).base_model(spectrogram)
    expected = image_model_states(vit, grey_image(spectrogram))
    torch.testing.assert_close(actual.last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(actual.pooler_output, expected[:, 0], atol=1e-5, rtol=1e-5)


VARIANTS = [
    {"bare": True},
    {"num_channels": 1},
    {"num_channels": 4},
    {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 1, "intermediate_size": 20},
    {"qkv_bias": False, "hidden_act": "relu", "layer_norm_eps": 1e-2},
    {"patch_size": 16, "image_size": 48},
    {"patch_size": (8, 8), "image_size": [24, 24]},
    {"image_size": (24, 40)},
    {"image_size": (45, 18)},  # the last pixels are under a patch
]


@each_image_model
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_every_size_and_head(architecture, options):
    model = make_image_model(architecture, **options)
    image = model.base_model.embeddings.patch_embeddings
    (rows, columns), patch = image.image_size, image.patch_size[0]
    ast = ast_from_vit(model, columns, rows, time_stride=patch, frequency_stride=patch)
    spectrogram = torch.randn(1, columns, rows)
    expected = image_model_states(model, grey_image(spectrogram, model.config.num_channels))
    actual = ast.base_model(spectrogram).last_hidden_state
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cls", [DeiTForImageClassificationWithTeacher, ViTForMaskedImageModeling])
@torch.no_grad()
def test_other_heads(cls):
    source = "deit" if cls is DeiTForImageClassificationWithTeacher else "vit"
    model = cls(make(source, encoder_stride=8).config)
    spectrogram = torch.randn(1, 24, 24)
    actual = ast_from_vit(model.eval(), **SAME_INPUT).base_model(spectrogram).last_hidden_state
    torch.testing.assert_close(actual, image_model_states(model, grey_image(spectrogram)), atol=1e-5, rtol=1e-5)


@each_image_model
def test_positions_are_cut_around_the_middle(architecture):
    model = make_image_model(architecture, image_size=(56, 72))  # 7 x 9 patches
    before = model.base_model.embeddings.position_embeddings.detach()[0]
    num_special = before.shape[0] - 63
    before, special = before[num_special:].T.unflatten(1, (7, 9)), before[:num_special]
    ast = ast_from_vit(model, max_length=32, num_mel_bins=24, time_stride=8, frequency_stride=8)  # 3 x 4
    after, kept = position_grid(ast)
    assert torch.equal(after, before[:, 2:5, 2:6])
    assert torch.equal(kept, special.expand(2, -1))


@each_image_model
def test_positions_are_interpolated_linearly(architecture):
    model = make_image_model(architecture)  # 3 x 3 patches
    before = model.base_model.embeddings.position_embeddings.detach()[:, -9:].transpose(1, 2).unflatten(2, (3, 3))
    after, _ = position_grid(ast_from_vit(model, max_length=80, num_mel_bins=40, time_stride=8, frequency_stride=8))
    expected = functional.interpolate(before, size=(5, 10), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(after, expected)
    longer, _ = position_grid(ast_from_vit(model, max_length=80, num_mel_bins=8, time_stride=8, frequency_stride=8))
    cut = before[:, :, 1:2]
    expected = functional.interpolate(cut, size=(1, 10), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(longer, expected)


@torch.no_grad()
def test_overlapping_patches():
    model = make_image_model("vit", patch_size=16, image_size=64)
    ast = ast_from_vit(model, max_length=166, num_mel_bins=36, time_stride=10, frequency_stride=10)
    assert position_grid(ast)[0].shape[1:] == (3, 16)
    assert ast.base_model.embeddings.patch_embeddings.projection.stride == (10, 10)
    assert ast(torch.randn(1, 166, 36)).logits.shape == (1, NUM_LABELS)


def test_the_usual_sizes_are_the_default():
    ast = ast_from_vit(make_image_model("deit", patch_size=16, image_size=224))
    assert position_grid(ast)[0].shape[1:] == (8, 64)
    assert (ast.config.max_length, ast.config.num_mel_bins, ast.config.patch_size) == (1024, 128, 16)


def test_labels_dtype_and_mode():
    labels = dict(enumerate("abc"))
    model = make("vit", num_labels=3, id2label=labels, label2id={label: i for i, label in labels.items()})
    ast = ast_from_vit(model.to(torch.bfloat16), **SAME_INPUT)
    assert ast.config.id2label == labels and ast.config.label2id["c"] == 2
    assert ast.classifier.dense.weight.shape[0] == 3
    assert {parameter.dtype for parameter in ast.parameters()} == {torch.bfloat16}
    assert not ast.training and ast_from_vit(model.train(), **SAME_INPUT).training
    assert ast_from_vit(model, num_labels=7, **SAME_INPUT).config.num_labels == 7


def test_the_configuration_has_all_that_the_encoder_computes_with():
    fields = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "hidden_act": "relu",
        "hidden_dropout_prob": 0.25,
        "attention_probs_dropout_prob": 0.5,
        "initializer_range": 0.3,
        "layer_norm_eps": 1e-3,
        "qkv_bias": False,
    }
    config = ast_from_vit(make("deit", **fields), **SAME_INPUT).config
    assert {name: getattr(config, name) for name in fields} == fields


def test_the_image_model_shares_nothing_with_the_ast():
    model = make_image_model("deit")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ast = ast_from_vit(model, **SAME_INPUT)
    with torch.no_grad():
        for parameter in ast.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_it_saves_loads_and_takes_adapters(tmp_path):
    ast = ast_from_vit(make_image_model("vit"), num_labels=4, **SAME_INPUT)
    ast.save_pretrained(tmp_path)
    inputs = torch.randn(2, 24, 24)
    again = ASTForAudioClassification.from_pretrained(tmp_path)
    assert torch.equal(again(inputs).logits, ast(inputs).logits)
    assert get_peft_model(again, IPETConfig(num_virtual_tokens=2))(inputs).logits.shape == (2, 4)


@pytest.mark.parametrize("field", ["max_length", "num_mel_bins", "time_stride", "frequency_stride", "num_labels"])
@pytest.mark.parametrize("value", [0, -8, 2.5, True])
def test_wrong_numbers(field, value):
    message = rf"`{field}` must be a positive integer, got {value}"
    with pytest.raises(ValueError, match=message):
        ast_from_vit(make("vit"), **{field: value})
    with pytest.raises(ValueError, match=message):
        ast_from_ssast(make_ssast(), **{**SMALL, field: value})


@pytest.mark.parametrize("field", ["max_length", "num_mel_bins"])
def test_an_input_under_one_patch(field):
    with pytest.raises(ValueError, match=rf"`{field}` must be at least one patch \(8\), got 7"):
        ast_from_vit(make("vit"), **{field: 7})
    with pytest.raises(ValueError, match=rf"`{field}` must be at least one patch \(16\), got 15"):
        ast_from_ssast(make_ssast(), **{**SMALL, field: 15})


def test_down_to_one_patch():
    ast = ast_from_vit(make("deit"), max_length=8, num_mel_bins=8)
    assert ast(torch.randn(1, 8, 8)).logits.shape == (1, NUM_LABELS)


def test_patches_that_are_not_square():
    with pytest.raises(ValueError, match=r"`patch_size` must be .*, got \(8, 4\)"):
        ast_from_vit(make("vit", patch_size=(8, 4)))


@pytest.mark.parametrize("make_other", [make_ast, make_wav2vec2, dict])
def test_other_models_are_refused(make_other):
    other = make_other()
    with pytest.raises(TypeError, match=f"takes a ViT or DeiT .*got {type(other).__name__}"):
        ast_from_vit(other)


def test_adapters_are_refused():
    model = get_peft_model(make("vit"), IPETConfig())
    with pytest.raises(TypeError, match="got PeftModel"):
        ast_from_vit(model)
    with pytest.raises(TypeError, match="without adapters"):
        ast_from_vit(model.get_base_model())


# ---- SSAST -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_are_ssasts():
    tensors = make_ssast()
    ast = randomize_head(ast_from_ssast(tensors, num_labels=NUM_LABELS, num_attention_heads=HEADS))
    inputs = torch.randn(2, 1024, 128)
    expected = ssast_forward(tensors, ast.classifier, inputs)
    torch.testing.assert_close(ast(inputs).logits, expected, atol=1e-5, rtol=1e-5)
    assert not ast.training and ast.config.num_labels == NUM_LABELS


@torch.no_grad()
def test_epsilons_are_ssasts():
    # Weights this small leave variances where each epsilon counts.
    tensors = {name: 0.01 * tensor if tensor.is_floating_point() else tensor for name, tensor in make_ssast().items()}
    ast = randomize_head(ast_from_ssast(tensors, num_labels=NUM_LABELS, num_attention_heads=HEADS))
    inputs = torch.randn(1, 1024, 128)
    expected = ssast_forward(tensors, ast.classifier, inputs)
    torch.testing.assert_close(ast(inputs).logits, expected, atol=1e-7, rtol=1e-5)


@torch.no_grad()
def test_another_length_and_stride():
    tensors = make_ssast()
    sizes = {"max_length": 512, "num_mel_bins": 64, "time_stride": 10, "frequency_stride": 10}
    ast = randomize_head(ast_from_ssast(tensors, NUM_LABELS, num_attention_heads=HEADS, **sizes))
    positions = tensors["module.v.pos_embed"]
    patches = positions[:, 2:].transpose(1, 2).unflatten(2, (8, 64))
    # 128 x 1024 at stride 10 has 12 x 101 patches, 64 x 512 has 5 x 50: those in the middle.
    patches = functional.interpolate(patches, size=(12, 101), mode="bilinear", align_corners=False)
    patches = patches[:, :, 4:9, 25:75].flatten(2).transpose(1, 2)
    inputs = torch.randn(1, 512, 64)
    positions = torch.cat([positions[:, :2], patches], dim=1)
    expected = ssast_forward(tensors, ast.classifier, inputs, positions, stride=(10, 10))
    torch.testing.assert_close(ast(inputs).logits, expected, atol=1e-5, rtol=1e-5)
    assert not hasattr(ast.config, "ast_resizes")  # the model as it is saved needs no steps


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", ["pth", "safetensors", "folder/pt"])
def test_files_with_and_without_prefix(prefix, kind, tmp_path):
    expected = ast_from_ssast(make_ssast(), **SMALL).base_model.state_dict()
    tensors, path = make_ssast(prefix=prefix), tmp_path / f"ssast.{kind.rpartition('/')[2]}"
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    for source in (tensors, path, str(path)):
        actual = ast_from_ssast(source, **SMALL).base_model.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in actual.items())


def test_pretraining_of_another_length():
    ast = ast_from_ssast(make_ssast(num_patches=256), **{**SMALL, "max_length": 512, "num_mel_bins": 128})
    actual = ast.base_model.embeddings.position_embeddings
    assert torch.equal(actual, make_ssast(num_patches=256)["module.v.pos_embed"])


def test_heads_dtype_and_default_labels():
    config = ast_from_ssast(make_ssast(width=128, depth=1), max_length=16).config
    assert (config.num_attention_heads, config.num_hidden_layers, config.num_labels) == (2, 1, 527)
    with pytest.raises(ValueError, match=r"`num_attention_heads` must be given .*\(32\)"):
        ast_from_ssast(make_ssast())
    for wrong in (0, 5, "4"):
        with pytest.raises(ValueError, match=f"`num_attention_heads` must be .*{wrong}"):
            ast_from_ssast(make_ssast(), num_attention_heads=wrong)
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in make_ssast().items()}
    assert ast_from_ssast(half, **SMALL).dtype == torch.float16


@pytest.mark.parametrize("missing", ["cls_token", "blocks.1.attn.qkv.bias", "norm.weight", "patch_embed.proj.bias"])
def test_missing_tensors_are_named(missing):
    tensors = make_ssast()
    del tensors[f"module.v.{missing}"]
    with pytest.raises(ValueError, match=rf"lacks v\.{missing}\."):
        ast_from_ssast(tensors, **SMALL)


def test_a_missing_layer_is_named():
    tensors = {name: tensor for name, tensor in make_ssast(depth=3).items() if ".blocks.1." not in name}
    with pytest.raises(ValueError, match=r"lacks v\.blocks\.1\.attn\.qkv\.weight, .* and 4 more"):
        ast_from_ssast(tensors, **SMALL)


def test_unknown_tensors_are_named():
    with pytest.raises(ValueError, match=r"has v\.blocks\.0\.gamma, "):
        ast_from_ssast(make_ssast() | {"module.v.blocks.0.gamma": torch.ones(1)}, **SMALL)


def test_checkpoints_pretrained_on_frames_are_refused():
    with pytest.raises(ValueError, match=r"on patches, not on frames, got \(32, 1, 128, 2\)"):
        ast_from_ssast(make_ssast(patch=(128, 2)), **SMALL)


def test_positions_of_another_pretraining_input_are_refused():
    tensors = make_ssast()
    tensors["module.v.pos_embed"] = torch.zeros(1, 500, WIDTH)
    with pytest.raises(ValueError, match=r"`v.pos_embed` must be of shape \(1, 514, d\) .*got \(1, 500, 32\)"):
        ast_from_ssast(tensors, **SMALL)


def test_what_is_no_state_dict_is_refused(tmp_path):
    torch.save([1], tmp_path / "list.pth")
    for wrong in (3, make_ast(), tmp_path / "list.pth"):
        with pytest.raises(TypeError, match="`checkpoint` must be a state dict, or the path"):
            ast_from_ssast(wrong)
    with pytest.raises(FileNotFoundError):
        ast_from_ssast(tmp_path / "absent.pth")
