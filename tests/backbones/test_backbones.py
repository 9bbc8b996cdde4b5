"""The table of backbones, and architectures that it does not know."""

import copy

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from tiny import BACKBONES, METHODS, NUM_LAYERS, each_backbone, each_method, make, make_inputs, randomize, same
from torch import nn
from transformers import PretrainedConfig

from peft_audio import EncoderSpec, IPETConfig, TimeFreqConvAdapterConfig, register_backbone
from peft_audio.backbones.table import BACKBONES as TABLE
from peft_audio.backbones.table import resolve


@each_backbone
def test_places_are_found_with_and_without_adapters(backbone):
    model = BACKBONES[backbone]()
    before = resolve(model)
    assert len(before.layer_names) == NUM_LAYERS and before.hidden_size == 32
    adapted = get_peft_model(model, IPETConfig())
    assert resolve(model).layer_names == before.layer_names
    assert adapted.base_model.targeted_module_names == list(before.layer_names)


def test_an_unsupported_model_is_told_what_to_do():
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    model = transformers.BertModel(transformers.BertConfig(**sizes))
    with pytest.raises(ValueError, match="'bert'.*audio-spectrogram-transformer, .*whisper.*register_backbone"):
        get_peft_model(model, IPETConfig())


def test_a_changed_layout_is_told_what_was_looked_for():
    model = BACKBONES["ast"]()
    model.audio_spectrogram_transformer.stack = model.audio_spectrogram_transformer.layers
    del model.audio_spectrogram_transformer.layers
    with pytest.raises(ValueError, match="`layers` .*'layers', 'encoder.layer' in ASTModel, which has .*stack"):
        get_peft_model(model, IPETConfig())


class Block(nn.Module):
    """A pre-norm encoder layer written from scratch, whose attention returns a tensor."""

    def __init__(self, width):
        super().__init__()
        self.norm_in, self.norm_mid = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixer = Mixer(width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens):
        tokens = tokens + self.mixer(self.norm_in(tokens))
        return tokens + self.narrow(self.wide(self.norm_mid(tokens)).relu())


class Mixer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, hidden_states):
        scores = self.query(hidden_states) @ self.key(hidden_states).transpose(1, 2)
        return scores.softmax(-1) @ self.value(hidden_states)


class Unheard(nn.Module):
    """A classifier that no library knows, of spectrograms in patches of 4 x 4."""

    def __init__(self, width=32):
        super().__init__()
        self.config = PretrainedConfig(num_labels=4)
        self.config.model_type = "unheard-of"
        self.config.size = (8, 20)
        self.stem = nn.Conv2d(1, width, 4, stride=4)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.out = nn.Linear(width, 4)

    def forward(self, spectrograms):
        tokens = self.stem(spectrograms.unsqueeze(1)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.out(tokens.mean(1))


@pytest.fixture
def registered():
    spec = EncoderSpec(
        layers="blocks",
        attention="mixer",
        attention_norm="norm_in",
        feed_forward_norm="norm_mid",
        feed_forward="narrow",
        head=("out",),
        patch_projection="stem",
        input="stem",
        input_shape=lambda config: (1, *config.size),
    )
    register_backbone("unheard-of", spec)
    yield
    del TABLE["unheard-of"]


@each_method
def test_a_users_own_architecture(method, registered, tmp_path):
    model, spectrograms = Unheard(), torch.randn(2, 8, 20)
    base, start = model(spectrograms), copy.deepcopy(model)
    adapted = randomize(get_peft_model(model, METHODS[method]()))
    output = adapted(spectrograms)
    assert not torch.allclose(output, base, atol=1e-4)
    output.sum().backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
    assert adapted.peft_config["default"].modules_to_save == ["out"]
    with adapted.disable_adapter():
        assert same(adapted(spectrograms), base)
    adapted.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(start, tmp_path)
    assert same(again(spectrograms), adapted(spectrograms))


def test_the_grid_is_that_of_the_input_given(registered):
    """The registered convolution tells: the same number of tokens, in another grid, gives other results."""
    config = TimeFreqConvAdapterConfig(attention_kernel=(3, 1), mlp_kernel=None, init_weights=False)
    model = get_peft_model(Unheard(), config)
    layer, grids = model.base_model.model.blocks[0], []
    layer.part("attention_adapter")["default"].register_forward_pre_hook(lambda _, args: grids.append(args[1].grid))
    for height, width in ((8, 20), (20, 8), (4, 12)):
        model(torch.randn(1, height, width))
        assert grids.pop() == (height // 4, width // 4)


@pytest.mark.parametrize("model_type, spec", [("", EncoderSpec("a", "b", "c", "d")), ("x", "blocks"), (3, None)])
def test_wrong_rows_are_refused(model_type, spec):
    with pytest.raises(ValueError, match="must be"):
        register_backbone(model_type, spec)
    assert model_type not in TABLE


@each_backbone
def test_inputs_are_what_the_tiny_models_take(backbone):
    assert BACKBONES[backbone]()(**make_inputs(backbone)).logits.shape == (2, 5)


@torch.no_grad()
def test_whole_encoder_decoders_are_adapted_in_the_encoder():
    whisper = make("whisper")
    model = transformers.WhisperModel(whisper.config).eval()
    inputs = {**make_inputs("whisper"), "decoder_input_ids": torch.tensor([[1, 2], [1, 3]])}
    base = model(**inputs).last_hidden_state
    adapted = randomize(get_peft_model(model, IPETConfig())).eval()
    assert not torch.allclose(adapted(**inputs).last_hidden_state, base, atol=1e-4)
    assert all(name.startswith("encoder.layers") for name in adapted.base_model.targeted_module_names)
    generating = transformers.WhisperForConditionalGeneration(whisper.config)
    assert resolve(generating).layer_names == tuple(f"model.encoder.layers.{index}" for index in range(NUM_LAYERS))


@each_method
def test_a_deit_with_two_heads(method):
    model = transformers.DeiTForImageClassificationWithTeacher(make("deit").config)
    adapted = get_peft_model(model, METHODS[method]())
    assert adapted.peft_config["default"].modules_to_save == ["cls_classifier", "distillation_classifier"]
    adapted(**make_inputs("deit")).logits.sum().backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
