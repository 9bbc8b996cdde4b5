"""Prompts where attention is told positions: as if they stood in front of the whole layer, one place before the first token."""

import pytest
import torch
from peft import get_peft_model
from tiny import BACKBONES, METHODS, make_inputs, randomize

from peft_audio import EmbeddingPromptConfig
from peft_audio.backbones.table import resolve


NUM_PROMPTS = 3


def record_calls(layers):
    """The arguments that each encoder layer of the base model is called with."""
    calls = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    return calls


def prompted(backbone, **options):
    """An adapted model, its prompts layer by layer (None where a layer has none), and what its layers give."""
    config = EmbeddingPromptConfig(num_virtual_tokens=NUM_PROMPTS, **options)
    model = randomize(get_peft_model(BACKBONES[backbone](), config), std=1.0).eval()
    layers = [model.get_submodule(f"base_model.model.{name}") for name in resolve(model.get_base_model()).layer_names]
    prompts = [layer.part("prompt")["default"].embeddings if hasattr(layer, "part") else None for layer in layers]
    outputs = []
    for layer in layers:
        layer.register_forward_hook(
            lambda module, args, output: outputs.append(output[0] if isinstance(output, tuple) else output)
        )
    with torch.no_grad():
        model(**make_inputs(backbone))
    return prompts, outputs


def base_layers(backbone):
    model = BACKBONES[backbone]()
    layers = [model.get_submodule(name) for name in resolve(model).layer_names]
    calls = record_calls(layers)
    with torch.no_grad():
        model(**make_inputs(backbone))
    return model, layers, calls


def in_front(prompt, hidden_states):
    return torch.cat([prompt.expand(hidden_states.shape[0], -1, -1), hidden_states], dim=1)


@pytest.mark.parametrize("backbone", ["wavlm", "wavlm-stable"])
@pytest.mark.parametrize("layers", [None, [0], [1], [0, 2]])
@torch.no_grad()
def test_wavlm(backbone, layers):
    prompts, outputs = prompted(backbone, layers_to_transform=layers)
    model, base, calls = base_layers(backbone)
    attention = base[0].attention
    hidden_states = calls[0][0][0]
    for layer, prompt, output in zip(base, prompts, outputs):
        extra = 0 if prompt is None else NUM_PROMPTS
        length = hidden_states.shape[1] + extra
        # The model's own bias for a sequence of this length, whichever layer made it before.
        bias = attention.compute_bias(length, length).repeat(hidden_states.shape[0], 1, 1)
        tokens = hidden_states if prompt is None else in_front(prompt, hidden_states)
        hidden_states = layer(tokens, position_bias=bias)[0][:, extra:]
        torch.testing.assert_close(output, hidden_states, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [None, [1]])
@torch.no_grad()
def test_sew_d(layers):
    prompts, outputs = prompted("sew-d", layers_to_transform=layers)
    model, base, calls = base_layers("sew-d")
    encoder = model.sew_d.encoder.encoder
    assert encoder.conv is None  # nothing between the layers
    for layer, prompt, output, before in zip(base, prompts, outputs, [None, *outputs]):
        hidden_states = calls[0][0][0] if before is None else before
        tokens = hidden_states if prompt is None else in_front(prompt, hidden_states)
        extra = tokens.shape[1] - hidden_states.shape[1]
        mask = torch.ones(tokens.shape[:2], dtype=torch.long)[:, None, None]
        expected = layer(
            tokens,
            mask,
            relative_pos=encoder.get_rel_pos(tokens),
            rel_embeddings=encoder.get_rel_embedding(),
        )
        torch.testing.assert_close(output, expected[:, extra:], atol=1e-5, rtol=1e-5)


CONFORMERS = ["wav2vec2-conformer-relative", "wav2vec2-conformer-rotary", "wav2vec2-bert", "wav2vec2-bert-relative"]


@pytest.mark.parametrize("backbone", CONFORMERS)
@pytest.mark.parametrize("layers", [None, [1]])
@torch.no_grad()
def test_conformers(backbone, layers):
    """Their layers do more than attention in front of it, so prompts stand in front of attention alone."""
    prompts, outputs = prompted(backbone, layers_to_transform=layers)
    model, base, calls = base_layers(backbone)
    encoder = model.base_model.encoder
    hidden_states = calls[0][1].get("hidden_states", calls[0][0][0] if calls[0][0] else None)
    for layer, prompt, output in zip(base, prompts, outputs):
        x = layer.ffn1(layer.ffn1_layer_norm(hidden_states)) * 0.5 + hidden_states
        tokens = layer.self_attn_layer_norm(x if prompt is None else in_front(prompt, x))
        extra = tokens.shape[1] - x.shape[1]
        positions = None if encoder.embed_positions is None else encoder.embed_positions(tokens)
        x = x + layer.self_attn(tokens, relative_position_embeddings=positions)[0][:, extra:]
        x = x + layer.conv_module(x)
        hidden_states = layer.final_layer_norm(x + 0.5 * layer.ffn2(layer.ffn2_layer_norm(x)))
        torch.testing.assert_close(output, hidden_states, atol=1e-5, rtol=1e-5)


LAYER_WIDE = [
    "ast",
    "data2vec-audio",
    "deit",
    "hubert",
    "hubert-stable",
    "sew",
    "unispeech-sat",
    "vit",
    "wav2vec2",
    "whisper",
]


@pytest.mark.parametrize("backbone", LAYER_WIDE)
@torch.no_grad()
def test_prompts_in_front_of_the_whole_layer_give_the_same(backbone):
    prompts, outputs = prompted(backbone)
    model, base, calls = base_layers(backbone)
    hidden_states = calls[0][0][0]
    for layer, prompt, output in zip(base, prompts, outputs):
        expected = layer(in_front(prompt, hidden_states), None)
        hidden_states = (expected[0] if isinstance(expected, tuple) else expected)[:, NUM_PROMPTS:]
        torch.testing.assert_close(output, hidden_states, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backbone", ["wavlm", "sew-d", *CONFORMERS])
def test_prompts_of_several_active_adapters_stand_side_by_side(backbone):
    model = get_peft_model(BACKBONES[backbone](), METHODS["embedding_prompt"](modules_to_save=[])).eval()
    model.add_adapter("second", METHODS["embedding_prompt"](modules_to_save=[]))
    double = get_peft_model(
        BACKBONES[backbone](), EmbeddingPromptConfig(num_virtual_tokens=6, modules_to_save=[])
    ).eval()
    for layer, joined in zip(_tuned(model), _tuned(double)):
        both = torch.cat([layer.part("prompt")[name].embeddings for name in ("default", "second")])
        joined.part("prompt")["default"].embeddings.data.copy_(both)
    model.base_model.set_adapter(["default", "second"])
    with torch.no_grad():
        torch.testing.assert_close(model(**make_inputs(backbone)).logits, double(**make_inputs(backbone)).logits)


def _tuned(model):
    return [module for module in model.modules() if hasattr(module, "part")]
