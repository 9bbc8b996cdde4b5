"""Rows for models with code of their own on the Hub, on models laid out like those."""

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lookalikes import CLASSES, DEPTH, drawn, make_ced, make_dasheng, make_eat
from lookalikes_of_speech_models import CFG, BEATs, make_mert
from peft import PeftModel, get_peft_model
from reference import bottleneck
from tiny import CHANGED_AT_START, METHODS, randomize, same, trainable

from peft_audio import EmbeddingPromptConfig, TimeFreqConvAdapterConfig, register_backbone, supported_backbones
from peft_audio.backbones import contrib, table
from peft_audio.backbones.table import resolve


DOCUMENT = Path(__file__).parents[2] / "docs" / "backbones_on_the_hub.md"
NUM_PROMPTS = 3


@functools.cache
def beats_class():
    """The class around BEATs that the documentation gives."""
    names: dict[str, Any] = {}
    blocks = DOCUMENT.read_text("utf-8").split("```python\n")[1:]
    exec(next(block for block in blocks if "class BEATs" in block).split("```")[0], names)
    return names["BEATsForAudioClassification"]


def make_beats(**fields):
    cfg = {**CFG, **fields}
    return drawn(lambda: beats_class()(BEATs(cfg), cfg, CLASSES))


class Model(NamedTuple):
    """How a model is made, and what it takes."""

    make: Any
    shape: tuple[int, ...]
    mask: Any = None
    batch_dim: int = 0


SPECTROGRAM, WAVEFORM = (16, 48), (800,)
MODELS = {
    "dasheng": Model(make_dasheng, (8, 48)),
    "dasheng-bare": Model(functools.partial(make_dasheng, outputdim=None), (8, 48)),
    "dasheng-grid": Model(
        functools.partial(make_dasheng, n_mels=16, patch_size=[4, 4], patch_stride=[4, 4]), SPECTROGRAM
    ),
    "ced": Model(make_ced, SPECTROGRAM),
    "ced-bare": Model(functools.partial(make_ced, bare=True), SPECTROGRAM),
    "eat": Model(make_eat, (1, 64, 16)),
    "eat-finetune": Model(functools.partial(make_eat, model_variant="finetune"), (1, 64, 16)),
    "eat-pre-norm": Model(functools.partial(make_eat, layer_norm_first=True), (1, 64, 16)),
    "mert": Model(make_mert, WAVEFORM, "attention_mask"),
    "mert-stable": Model(functools.partial(make_mert, do_stable_layer_norm=True), WAVEFORM, "attention_mask"),
    "mert-deepnorm": Model(
        functools.partial(make_mert, deepnorm=True, attention_relax=32.0), WAVEFORM, "attention_mask"
    ),
    "mert-cqt": Model(functools.partial(make_mert, feature_extractor_cqt=True), WAVEFORM),
    "beats": Model(make_beats, WAVEFORM, "padding_mask", batch_dim=1),
    "beats-pre-norm": Model(
        functools.partial(make_beats, layer_norm_first=True), WAVEFORM, "padding_mask", batch_dim=1
    ),
    "beats-no-bias": Model(
        functools.partial(make_beats, relative_position_embedding=False), WAVEFORM, "padding_mask", batch_dim=1
    ),
}
# One of each model, with its published layout.
PUBLISHED = ["dasheng", "ced", "eat", "eat-finetune", "mert", "mert-stable", "beats"]
each_model = pytest.mark.parametrize("name", MODELS)
each_published = pytest.mark.parametrize("name", PUBLISHED)
each_method = pytest.mark.parametrize(
    "method", ["parallel_mlp", "aat_ms", "joint", "time_freq_conv", "conformer", "side_attention"]
)


@pytest.fixture(autouse=True, scope="module")
def registered():
    """The rows are there for this file alone; what was found to hold is not checked again."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("BACKBONES", "_REGISTERED", "_CHECKED"):
            patch.setattr(table, name, type(getattr(table, name))(getattr(table, name)))
        for model_type in contrib.SPECS:
            contrib.register(model_type)
        yield


def inputs_of(name, batch_size=2):
    return torch.randn(batch_size, *MODELS[name].shape, generator=torch.Generator().manual_seed(1))


def output_of(model, inputs, **options):
    output = model(inputs, **options)
    return output if isinstance(output, torch.Tensor) else next(iter(output.to_tuple()))


def layers_of(model):
    names = resolve(model.get_base_model() if hasattr(model, "get_base_model") else model).layer_names
    prefix = "base_model.model." if hasattr(model, "get_base_model") else ""
    return [model.get_submodule(prefix + name) for name in names]


def first_tensor(output):
    return output[0] if isinstance(output, tuple) else output


# ---- what the rows claim ---------------------------------------------------------------------------------------------


@each_model
def test_a_row_passes_its_check_without_a_warning(name, monkeypatch):
    monkeypatch.setattr(table, "_CHECKED", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        get_peft_model(MODELS[name].make(), METHODS["joint"]())
    assert len(table._CHECKED) == 1
    get_peft_model(MODELS[name].make(), METHODS["joint"]())
    assert len(table._CHECKED) == 1  # the same row: it is not checked again
    assert len(resolve(MODELS[name].make()).layer_names) == DEPTH


WRONG = [
    ("dasheng", {"attention": "mlp"}, "attention does not read what stands in front"),
    ("ced", {"attention": "norm2"}, "attention does not read what stands in front"),
    ("ced", {"layers": "encoder.layers"}, "`layers` of model type 'ced' was looked for"),
    ("eat", {"feed_forward_norm": "norm2"}, "mlp_adapter on encoder layer 0 does not change what it gives"),
    ("eat", {"attention": "mlp"}, "attention does not read what stands in front"),
    ("mert", {"attention": "feed_forward", "keys_and_values": None}, "attention does not read what stands in front"),
    ("mert-deepnorm", {"feed_forward_norm": "final_layer_norm"}, "mlp_adapter on encoder layer 0 does not change"),
    ("beats", {"batch_first": True}, "prompts_act: .*clips_stay_apart: "),
    ("beats", {"positions": None}, "attention_gets_no_positions: "),
    ("beats", {"attention": "fc2"}, "does not hold"),
]


@pytest.mark.parametrize("name, wrong, message", WRONG)
def test_a_row_with_a_wrong_part_is_refused(name, wrong, message, monkeypatch):
    model = MODELS[name].make()
    monkeypatch.setattr(table, "BACKBONES", dict(table.BACKBONES))
    register_backbone(model.config.model_type, dataclasses.replace(resolve(model).spec, **wrong))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        get_peft_model(model, METHODS["joint"]())


# ---- adapters --------------------------------------------------------------------------------------------------------


@each_published
@each_method
def test_adapters_start_train_and_come_back(name, method, tmp_path):
    base, inputs = MODELS[name].make(), inputs_of(name)
    with torch.no_grad():
        before = output_of(base, inputs)
    model = get_peft_model(base, METHODS[method]()).eval()
    with torch.no_grad():
        assert same(output_of(model, inputs), before) == (method not in CHANGED_AT_START)
    randomize(model)
    after = output_of(model, inputs)
    after.square().mean().backward()
    silent = [key for key, value in trainable(model).items() if value.grad is None or not value.grad.abs().max() > 0]
    assert silent == []
    with torch.no_grad():
        assert not torch.allclose(after, before, atol=1e-5)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(MODELS[name].make(), tmp_path).eval()
        torch.testing.assert_close(output_of(again, inputs), after)
        with model.disable_adapter():
            torch.testing.assert_close(output_of(model, inputs), before)


@each_model
@torch.no_grad()
def test_prompts_are_prompts_in_front_of_each_layers_tokens(name):
    config = EmbeddingPromptConfig(num_virtual_tokens=NUM_PROMPTS)
    model = randomize(get_peft_model(MODELS[name].make(), config), std=1.0).eval()
    given: list[Any] = []
    for layer in layers_of(model):
        layer.register_forward_hook(lambda module, args, output: given.append(first_tensor(output)))
    output_of(model, inputs_of(name))
    base, entered, axis = MODELS[name].make(), [], 1 - MODELS[name].batch_dim
    base_layers = layers_of(base)
    handle = base_layers[0].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    output_of(base, inputs_of(name))
    handle.remove()
    (tokens,) = entered
    for layer, tuned, seen in zip(base_layers, layers_of(model), given):
        prompt = tuned.part("prompt")["default"].embeddings.unsqueeze(1 - axis)
        prompt = prompt.expand(*[-1 if dim != 1 - axis else tokens.shape[1 - axis] for dim in range(3)])
        # Without a bias from the layer before, BEATs' attention makes one for the prompts and tokens that it is given.
        tokens = first_tensor(layer(torch.cat([prompt, tokens], dim=axis)))
        tokens = tokens.narrow(axis, NUM_PROMPTS, tokens.shape[axis] - NUM_PROMPTS)
        torch.testing.assert_close(seen, tokens, atol=1e-5, rtol=1e-4)


def in_a_pre_norm_layer(layer, x, adapter):
    x = x + layer.attn(layer.norm1(x))
    h = layer.norm2(x)
    return x + layer.mlp(h) + adapter(h)


def in_a_layer_of_eat(layer, x, adapter):
    x = layer.norm1(x + layer.attn(x))
    return layer.norm2(x + layer.mlp(x) + adapter(x))


def in_a_pre_norm_layer_of_eat(layer, x, adapter):
    h = layer.norm2(x + layer.attn(layer.norm1(x)))
    return 2 * layer.mlp(h) + adapter(h)


def in_a_layer_of_mert(layer, x, adapter):
    alpha = getattr(layer, "residual_alpha", 1)
    x = layer.layer_norm(alpha * x + layer.attention(x)[0])
    return layer.final_layer_norm(alpha * x + layer.feed_forward(x) + adapter(x))


def in_a_layer_of_beats(layer, x, adapter):
    x = layer.self_attn_layer_norm(layer.deep_norm_alpha * x + layer.self_attn(x, x, x)[0])
    return layer.final_layer_norm(layer.deep_norm_alpha * x + layer.feed_forward(x) + adapter(x))


EQUATIONS = {
    "dasheng": in_a_pre_norm_layer,
    "ced": in_a_pre_norm_layer,
    "eat": in_a_layer_of_eat,
    "eat-pre-norm": in_a_pre_norm_layer_of_eat,
    "mert": in_a_layer_of_mert,
    "mert-deepnorm": in_a_layer_of_mert,
    "beats": in_a_layer_of_beats,
}


@pytest.mark.parametrize("name", EQUATIONS)
@torch.no_grad()
def test_an_adapter_is_added_to_what_the_feed_forward_block_gives(name):
    model = randomize(get_peft_model(MODELS[name].make(), METHODS["parallel_mlp"](layers_to_transform=[0]))).eval()
    seen: list[Any] = []
    layer = layers_of(model)[0]
    layer.register_forward_hook(lambda module, args, output: seen.extend((args[0], first_tensor(output))))
    output_of(model, inputs_of(name))
    entered, left = seen
    weights = layer.part("mlp_adapter")["default"].state_dict()
    expected = EQUATIONS[name](
        layers_of(MODELS[name].make())[0], entered, lambda h: bottleneck(h, weights, activation="relu")
    )
    torch.testing.assert_close(left, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.mask is not None])
@pytest.mark.parametrize("method", ["joint", "time_freq_conv", "conformer", "side_attention"])
@torch.no_grad()
def test_a_padded_clip_gives_what_it_gives_alone(name, method):
    model = randomize(get_peft_model(MODELS[name].make(), METHODS[method]())).eval()
    batch, short = inputs_of(name), 480
    batch[1, short:] = 0
    is_padding = torch.zeros(batch.shape, dtype=torch.bool)
    is_padding[1, short:] = True
    mask = is_padding if MODELS[name].mask == "padding_mask" else (~is_padding).long()
    both = output_of(model, batch, **{MODELS[name].mask: mask})[1]
    alone = output_of(model, batch[1:, :short], **{MODELS[name].mask: mask[1:, :short]})[0]
    size = min(len(both), len(alone))
    torch.testing.assert_close(both[:size], alone[:size], atol=1e-5, rtol=1e-4)


# ---- what the documentation says -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, rows_and_columns",
    [("dasheng", (1, 12)), ("dasheng-grid", (4, 12)), ("ced", (4, 12)), ("eat", (16, 4)), ("beats", (10, 4))],
)
def test_the_grid_of_tokens(name, rows_and_columns):
    config = TimeFreqConvAdapterConfig(attention_kernel=(1, 3), mlp_kernel=None)
    model, grids = get_peft_model(MODELS[name].make(), config), []
    adapter = layers_of(model)[0].part("attention_adapter")["default"]
    adapter.register_forward_pre_hook(lambda module, args: grids.append(args[1].grid))
    output_of(model, inputs_of(name))
    assert grids == [rows_and_columns]


@pytest.mark.parametrize("name, frequency_axis", [("ced", 0), ("eat", 1), ("beats", 1)])
@torch.no_grad()
def test_a_kernel_over_time_mixes_tokens_of_one_frequency(name, frequency_axis):
    config = TimeFreqConvAdapterConfig(attention_kernel=(1, 3), mlp_kernel=(3, 1), init_weights=False)
    model, calls = get_peft_model(MODELS[name].make(), config).eval(), []
    layer = layers_of(model)[0]
    for part in ("attention_adapter", "mlp_adapter"):
        layer.part(part)["default"].register_forward_hook(lambda module, args, output: calls.append((module, args)))
    output_of(model, inputs_of(name))
    for (adapter, (tokens, layout, *rest)), is_time in zip(list(calls), (True, False)):
        rows, columns = layout.grid
        changed = tokens.clone()
        changed[:, tokens.shape[1] - rows * columns + columns + 1] += 1  # the token of row 1 and column 1
        difference = adapter.forward(changed, layout, *rest) - adapter.forward(tokens, layout, *rest)
        grid = difference[:, -rows * columns :].abs().sum((0, 2)).unflatten(0, (rows, columns)) > 0
        reached = [set(axis.tolist()) for axis in grid.nonzero(as_tuple=True)]
        still, moved = reached[frequency_axis], reached[1 - frequency_axis]
        assert (still, moved) == (({1}, moved) if is_time else (still, {1})) and grid.sum() == 4


HEADS_OF = {
    "dasheng": ["outputlayer"],
    "dasheng-bare": [],
    "ced": ["outputlayer"],
    "ced-bare": [],
    "eat": [],
    "eat-finetune": ["model.fc_norm", "model.head"],
    "mert": [],
    "beats": ["classifier"],
}


@pytest.mark.parametrize("name", HEADS_OF)
def test_heads_are_found(name):
    assert list(resolve(MODELS[name].make()).head) == HEADS_OF[name]


def test_an_adapter_of_ced_remembers_the_size_of_its_head(tmp_path):
    get_peft_model(make_ced(), METHODS["parallel_mlp"]()).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="trained with outputdim=5, but this CedForAudioClassification has outputdim=6"
    ):
        PeftModel.from_pretrained(make_ced(outputdim=6), tmp_path)


@pytest.mark.parametrize("name", ["eat", "mert"])
def test_input_prompts(name):
    model = randomize(get_peft_model(MODELS[name].make(), METHODS["input_prompt"]())).eval()
    output_of(model, inputs_of(name)).square().mean().backward()
    assert all(value.grad.abs().max() > 0 for value in trainable(model).values())


@pytest.mark.parametrize("name", ["dasheng", "ced", "mert-cqt", "beats"])
def test_input_prompts_are_refused(name):
    with pytest.raises(ValueError, match="input"):
        get_peft_model(MODELS[name].make(), METHODS["input_prompt"]())


@pytest.mark.parametrize("name", ["dasheng", "ced"])
@torch.no_grad()
def test_a_clip_that_the_model_cuts_into_pieces(name):
    """Each piece is a clip to the layers: prompts stand in front of each, and none reads another."""
    model = randomize(get_peft_model(MODELS[name].make(), METHODS["joint"]())).eval()
    clip = torch.randn(1, MODELS[name].shape[0], 256)  # twice the model's length
    states = model(clip).hidden_states
    pieces = [model(piece).hidden_states for piece in clip.split(128, dim=-1)]
    torch.testing.assert_close(states, torch.cat(pieces, dim=1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_features_of_eat_as_its_card_computes_them():
    model = randomize(get_peft_model(make_eat(), METHODS["joint"]())).eval()
    inputs = inputs_of("eat")
    torch.testing.assert_close(model.extract_features(inputs), model(inputs))


def test_a_beats_configuration_without_the_checkpoints_fields_is_refused():
    model = make_beats()
    del model.config.layer_norm_first
    with pytest.raises(ValueError, match=r"`config.layer_norm_first` .*PretrainedConfig\(\*\*checkpoint"):
        get_peft_model(model, METHODS["joint"]())


# ---- registering -----------------------------------------------------------------------------------------------------


def test_nothing_is_registered_unasked(monkeypatch):
    monkeypatch.undo()
    plain = {name: row for name, row in table.BACKBONES.items() if name not in contrib.SPECS}
    monkeypatch.setattr(table, "BACKBONES", plain)
    monkeypatch.setattr(table, "_REGISTERED", set())
    with pytest.raises(ValueError, match="not a supported backbone"):
        get_peft_model(make_eat(), METHODS["joint"]())
    contrib.register("eat")
    assert {"eat"} == table._REGISTERED and set(supported_backbones()) - {"eat"} == set(plain) - {"eat"}
    get_peft_model(make_eat(), METHODS["joint"]())


@pytest.mark.parametrize("model_type", ["mert", "", None])
def test_an_unknown_type_is_told_which_there_are(model_type):
    with pytest.raises(
        ValueError, match=f"`model_type` must be one of beats, ced, dasheng, eat, mert_model, got {model_type!r}"
    ):
        contrib.register(model_type)
