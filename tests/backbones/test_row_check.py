"""Rows of the table verify themselves: those that hold pass, those that do not are refused with what was seen."""

import dataclasses
import warnings

import pytest
import torch
import transformers
from peft import get_peft_model
from refusals import left_alone, state_of
from tiny import BACKBONES, METHODS, WITH_PADDING, each_backbone, each_method, make, make_inputs, same
from torch import nn
from toys import ROW, make_toy

from peft_audio import EncoderSpec, IPETConfig, PositionRule, register_backbone
from peft_audio.backbones import table
from peft_audio.backbones.table import resolve
from peft_audio.tuner.made_up_inputs import Runnable, made_up_inputs
from peft_audio.tuner.row_check import RowCheck


# Types whose own convolutions or pooling let padding through.
LEAK_PADDING = ("data2vec-audio", "sew", "sew-d", "wav2vec2-conformer-relative", "wav2vec2-conformer-rotary")
HIDE_PADDING = [name for name in WITH_PADDING if name not in LEAK_PADDING]


def problems_of(model, inputs=None, **claims):
    backbone = resolve(model)
    backbone = dataclasses.replace(backbone, spec=dataclasses.replace(backbone.spec, **claims))
    runnable = made_up_inputs(model, backbone) if inputs is None else Runnable(model, inputs)
    assert runnable is not None
    return RowCheck(model, backbone, runnable).problems()


@each_backbone
def test_every_row_of_ours_holds_on_made_up_inputs(backbone):
    model = BACKBONES[backbone]()
    model(**make_inputs(backbone))  # transformers puts hooks of its own on at the first call
    before = state_of(model)
    assert problems_of(model) == []
    assert state_of(model) == before


@each_backbone
def test_every_row_of_ours_holds_on_inputs_that_are_given(backbone):
    assert problems_of(BACKBONES[backbone](), make_inputs(backbone)) == []


@pytest.mark.parametrize("backbone", HIDE_PADDING)
def test_rows_claim_that_padding_is_hidden_where_it_is(backbone):
    assert resolve(BACKBONES[backbone]()).spec.hides_padding


@pytest.mark.parametrize("backbone", LEAK_PADDING)
def test_a_claim_that_padding_is_hidden_is_refused_where_it_is_not(backbone):
    if not backbone.startswith("data2vec"):
        pytest.skip("a base model that lets padding through differs by less than adapters on made-up inputs")
    assert "padding changes a clip's output" in " ".join(problems_of(BACKBONES[backbone](), hides_padding=True))


@pytest.fixture
def registry():
    """Whatever a test registers is gone after it."""
    before = dict(table.BACKBONES), set(table._REGISTERED), set(table._CHECKED)
    yield
    for now, then in zip((table.BACKBONES, table._REGISTERED, table._CHECKED), before):
        now.clear()
        now.update(then)


# ---- claims that do not hold -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [1, 2])
def test_a_head_that_reads_patches(num_tokens):
    """A ViT whose head reads the mean of all tokens, as Dinov2's reads its patches, too."""
    model = make("vit")
    norm = model.vit.layernorm

    def mean_in_front(module, args, output):
        return torch.cat([output.mean(1, keepdim=True), output[:, 1:]], dim=1)

    assert problems_of(model) == []
    norm.register_forward_hook(mean_in_front)
    (problem,) = problems_of(model, read_tokens=num_tokens)
    assert f"reads more than the first {num_tokens} tokens" in problem and "Leave read_tokens out" in problem
    assert problems_of(model, read_tokens=None) == []


class WithNormOfKeys(nn.Module):
    """What some models put between the projection to keys and attention."""

    def __init__(self, projection):
        super().__init__()
        self.projection = projection

    def forward(self, tokens):
        return nn.functional.normalize(self.projection(tokens), dim=1)


def test_something_between_the_keys_and_attention():
    model = make("ast")
    for layer in model.base_model.layers:
        layer.attention.k_proj = WithNormOfKeys(layer.attention.k_proj)
    assert "prompts as keys and values differ" in " ".join(problems_of(model))
    assert problems_of(model, keys_and_values=None) == []


class Deaf(nn.Module):
    """Attention with projections of the names that the row gives, which takes any argument and uses those it knows."""

    def __init__(self, attention, config):
        super().__init__()
        self.attention, self.config = attention, config
        self.k_proj, self.v_proj = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, query, key, value, key_padding_mask=None, need_weights=False, **kwargs):
        return self.attention(query, key, value, key_padding_mask=key_padding_mask, need_weights=False)


def test_attention_that_calls_no_function_of_transformers(registry):
    model = make_toy()
    for layer in model.toy.layers:
        layer.self_attn = Deaf(layer.self_attn, model.config)
    register_backbone("toy", EncoderSpec(**ROW))
    assert problems_of(model) == []
    assert "AttentionInterface" in " ".join(problems_of(model, keys_and_values=("k_proj", "v_proj")))


def test_an_attention_place_that_is_none():
    """The feed-forward block's norm in the place of attention: prompts reach nothing."""
    assert problems_of(make("ast"), attention="layernorm_after", keys_and_values=None) != []


# ---- rows of users ---------------------------------------------------------------------------------------------------


def moonshine(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 36, "intermediate_size": 64, "vocab_size": 8}
    layers = {"encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 1}
    heads = {"encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4}
    config = transformers.MoonshineConfig(**sizes, **layers, **heads, **options)
    return transformers.MoonshineModel(config).eval()


def parakeet():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.ParakeetEncoderConfig(**sizes, subsampling_conv_channels=8, num_mel_bins=16)
    return transformers.ParakeetEncoder(config).eval()


def rotated_again(source, tokens, num_prompts, arguments):
    positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
    return {"position_embeddings": source(tokens, position_ids=positions)}


MOONSHINE = {
    "layers": "encoder.layers",
    "attention": "self_attn",
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward": "mlp",
    "head": (),
}
PARAKEET = {
    "layers": "layers",
    "attention": "self_attn",
    "attention_norm": "norm_self_att",
    "feed_forward_norm": "norm_feed_forward2",
    "feed_forward": "feed_forward2",
    "head": (),
}
MOONSHINE_RULE = PositionRule(rotated_again, source="encoder.rotary_emb")
PARAKEET_RULE = PositionRule(
    lambda source, tokens, num_prompts, arguments: {"position_embeddings": source(tokens)}, source="encode_positions"
)
KEYS = {"keys_and_values": ("k_proj", "v_proj")}


@pytest.mark.parametrize(
    "make_model, row, message",
    [
        pytest.param(moonshine, MOONSHINE, "prompts_act: RuntimeError", id="rotary positions without a rule"),
        pytest.param(moonshine, MOONSHINE | KEYS, "prompts_as_keys", id="rotary positions after the keys"),
        pytest.param(
            lambda: moonshine(pad_head_dim_to_multiple_of=8), MOONSHINE | KEYS, "unflatten", id="heads that are padded"
        ),
        pytest.param(
            parakeet, PARAKEET, "relative positions that were made for the tokens alone", id="relative positions"
        ),
        pytest.param(
            lambda: make_toy(time_first=True), ROW, r"batch_first=False", id="(tokens, batch, d) taken for the other"
        ),
        pytest.param(
            make_toy, ROW | {"batch_first": False}, "does not hold", id="(batch, tokens, d) taken for the other"
        ),
        pytest.param(make_toy, ROW | {"padding_mask": None}, "attention mask|padding", id="the mask is not named"),
    ],
)
def test_rows_that_do_not_hold_are_refused_and_leave_the_model_alone(make_model, row, message, registry):
    model = make_model()
    register_backbone(model.config.model_type, EncoderSpec(**row))
    with left_alone(model=model), pytest.raises(ValueError, match=f"(?s)EncoderSpec of model type .*{message}"):
        get_peft_model(model, IPETConfig(num_virtual_tokens=2))


@pytest.mark.parametrize(
    "make_model, row",
    [
        pytest.param(moonshine, MOONSHINE | {"positions": MOONSHINE_RULE}, id="moonshine"),
        pytest.param(
            lambda: moonshine(pad_head_dim_to_multiple_of=8),
            MOONSHINE | {"positions": MOONSHINE_RULE},
            id="moonshine, padded heads",
        ),
        pytest.param(parakeet, PARAKEET | {"positions": PARAKEET_RULE}, id="parakeet"),
        pytest.param(make_toy, ROW, id="toy"),
        pytest.param(lambda: make_toy(time_first=True), ROW | {"batch_first": False}, id="toy, (tokens, batch, d)"),
    ],
)
def test_rows_that_hold_are_checked_once(make_model, row, registry, monkeypatch):
    model_type = make_model().config.model_type
    register_backbone(model_type, EncoderSpec(**row))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*could not be checked.*")
        get_peft_model(make_model(), IPETConfig(num_virtual_tokens=2))
    monkeypatch.setattr(RowCheck, "problems", lambda self: pytest.fail("checked again"))
    get_peft_model(make_model(), IPETConfig(num_virtual_tokens=2))
    monkeypatch.undo()
    register_backbone(model_type, EncoderSpec(**row | {"attention": "nowhere"}))
    with pytest.raises(ValueError, match="nowhere"):
        get_peft_model(make_model(), IPETConfig(num_virtual_tokens=2))


def test_a_model_whose_inputs_are_not_found_is_warned_of(registry):
    model = make_toy()
    forward = model.forward
    model.forward = model.toy.forward = lambda clips, frames: forward(clips)
    register_backbone("toy", EncoderSpec(**ROW))
    with pytest.warns(UserWarning, match="could not be checked.*example_inputs"):
        get_peft_model(model, IPETConfig())


def test_inputs_that_the_row_names(registry):
    model, given = make_toy(), []

    def example_inputs(config, num_clips):
        given.append(num_clips)
        return {"input_values": torch.randn(num_clips, 7 * config.frame)}

    register_backbone("toy", EncoderSpec(**ROW, example_inputs=example_inputs))
    get_peft_model(model, IPETConfig())
    assert given == [2]


# ---- layers that take (tokens, batch, d) -----------------------------------------------------------------------------


@each_method
def test_time_first_layers_give_what_batch_first_layers_give(method, registry):
    """The same weights, the same numbers: the order of dimensions is no part of the function."""
    register_backbone("toy", EncoderSpec(**ROW))
    register_backbone("toy-time-first", EncoderSpec(**ROW, batch_first=False))
    models = []
    for time_first in (False, True):
        torch.manual_seed(1)
        models.append(get_peft_model(make_toy(time_first), METHODS[method](init_weights=False)).eval())
    inputs = make_inputs("toy", batch_size=3)
    mask = torch.ones(3, 800, dtype=torch.long)
    mask[1, 500:] = 0
    for options in ({}, {"attention_mask": mask}):
        outputs, gradients = [], []
        for model in models:
            model.zero_grad()
            output = model(**inputs, **options).logits
            output.square().sum().backward()
            outputs.append(output)
            gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        assert same(*outputs)
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)
        prompts = [gradient for name, gradient in gradients[0].items() if "prompt" in name]
        assert all(gradient.abs().max() > 0 for gradient in prompts)
    states = models[1](**inputs, output_hidden_states=True).hidden_states
    assert [state.shape for state in states] == [(3, 40, 32)] * 4


def test_prompts_of_time_first_layers_are_prompts_in_front_of_the_layer(registry):
    register_backbone("toy-time-first", EncoderSpec(**ROW, batch_first=False))
    model = get_peft_model(make_toy(True), METHODS["embedding_prompt"]()).eval()
    base, inputs = make_toy(True), make_inputs("toy", batch_size=3)
    x = base.toy.project(inputs["input_values"].unfold(1, 20, 20)).transpose(0, 1)
    for layer, tuned in zip(base.toy.layers, model.base_model.model.toy.layers):
        prompt = tuned.part("prompt")["default"].embeddings
        x = layer(torch.cat([prompt.unsqueeze(1).expand(-1, 3, -1), x]))[len(prompt) :]
    expected = base.classifier(x.mean(0))
    model.base_model.model.classifier.modules_to_save["default"].load_state_dict(base.classifier.state_dict())
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
