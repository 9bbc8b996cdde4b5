"""What holds for any configuration, on examples that hypothesis draws."""

import copy
import functools
import pickle
import re
import tempfile
from dataclasses import fields

import pytest
import torch
from hypotheses import examples, hypothesis, logits, some
from peft import PeftConfig, PeftModel, get_peft_config, get_peft_model
from tiny import NUM_LABELS, NUM_LAYERS, count_hooks, make, make_inputs, randomize, trainable
from torch import nn
from transformers.activations import ACT2FN

from peft_audio import (
    BottleneckAdapterConfig,
    EmbeddingPromptConfig,
    InputPromptConfig,
    IPETConfig,
    ParallelMLPAdapterConfig,
    SideNetworkConfig,
    TimeFreqConvAdapterConfig,
)
from peft_audio.tuner.encoder_layer import EncoderTunerLayer
from peft_audio.tuner.tuner_layer import HookedTunerLayer


HIDDEN = 32
HEADS = {"ast": 2 * HIDDEN + (HIDDEN + 1) * NUM_LABELS, "wav2vec2": (HIDDEN + 1) * 16 + (16 + 1) * NUM_LABELS}
each_backbone = pytest.mark.parametrize("backbone", HEADS)


# ---- configurations --------------------------------------------------------------------------------------------------


PROBABILITY = some.floats(0, 1, exclude_max=True)
FACTOR = some.one_of(some.floats(0.01, 3), some.floats(-3, -0.01), some.sampled_from([1, -2]))
WIDTH = some.integers(1, 9)
TAPS = some.sampled_from([1, 3, 5])
# Every layer at most once, counted from either end, in any order.
LAYERS = some.one_of(
    some.none(),
    some.integers(-NUM_LAYERS, NUM_LAYERS - 1),
    some.lists(some.integers(-NUM_LAYERS, NUM_LAYERS - 1), max_size=3, unique_by=lambda index: index % NUM_LAYERS),
)
SHARED = {"init_weights": some.booleans(), "modules_to_save": some.sampled_from([None, []])}
IN_LAYERS = {**SHARED, "layers_to_transform": LAYERS}
PROMPT = {"num_virtual_tokens": some.integers(1, 6), "prompt_dropout": PROBABILITY}
BOTTLENECK = {
    **IN_LAYERS,
    "bottleneck_dim": WIDTH,
    "reduction_factor": some.one_of(some.none(), some.floats(1, HIDDEN)),
    "activation": some.sampled_from(sorted(set(ACT2FN) - {"xielu"})),  # that one announces itself on every use
    "scaling": FACTOR,
    "dropout": PROBABILITY,
}
PARALLEL = {
    **BOTTLENECK,
    "learn_scaling": some.booleans(),
    "adapter_input": some.sampled_from(["normalized", "residual"]),
    "use_bias": some.booleans(),
}


def one_width(fields):
    """Options of a bottleneck with `bottleneck_dim` or `reduction_factor`."""

    def without_both(options):
        left_out = "reduction_factor" if options["reduction_factor"] is None else "bottleneck_dim"
        return {name: value for name, value in options.items() if name != left_out}

    return some.fixed_dictionaries(fields).map(without_both)


@some.composite
def prompts(draw, backbone):
    return EmbeddingPromptConfig(
        **draw(some.fixed_dictionaries({**IN_LAYERS, **PROMPT})), prompt_init=draw(init(backbone))
    )


def init(backbone):
    return some.sampled_from(["xavier_uniform", "vpt"] if backbone == "ast" else ["xavier_uniform"])


@some.composite
def parallel(draw, backbone, config_cls=ParallelMLPAdapterConfig, **more):
    options = draw(one_width({**PARALLEL, **more}))
    if draw(some.booleans()):
        options |= {"spatial_adapter": True, "spatial_bottleneck_dim": draw(some.one_of(some.none(), WIDTH))}
    return config_cls(**options)


def ipet(backbone):
    return parallel(backbone, IPETConfig, **PROMPT, prompt_init=init(backbone))


@some.composite
def convolutions(draw, backbone):
    kernel = some.one_of(
        some.none(), some.just("auto"), some.tuples(TAPS if backbone == "ast" else some.just(1), TAPS)
    )
    first = draw(kernel)
    kernels = {"attention_kernel": first, "mlp_kernel": draw(kernel if first else kernel.filter(bool))}
    options = {**BOTTLENECK, "use_bias": some.booleans(), "adapter_input": PARALLEL["adapter_input"]}
    return TimeFreqConvAdapterConfig(**kernels, **draw(one_width(options)))


@some.composite
def blocks(draw, backbone):
    options = draw(one_width(BOTTLENECK))
    if draw(some.booleans()):
        options |= {"block": "conformer", "activation": "gelu", "conv_kernel": draw(some.integers(1, 9))}
    sites = draw(some.sampled_from([("mlp",), ("attention",), ("mlp", "attention"), ("attention", "mlp")]))
    has_norm = backbone == "ast" or "mlp" in sites
    return BottleneckAdapterConfig(
        sites=sites,
        placement=draw(some.sampled_from(["parallel", "sequential"])),
        residual=draw(some.sampled_from([None, True, False])),
        train_layer_norms=has_norm and draw(some.booleans()),
        **options,
    )


@some.composite
def borders(draw, backbone):
    size = draw(some.integers(1, 18 if backbone == "ast" else 1000))
    return InputPromptConfig(prompt_size=size, **draw(some.fixed_dictionaries(SHARED)))


def sides(backbone):
    fields = {name: BOTTLENECK[name] for name in ("layers_to_transform", "activation", "dropout", *SHARED)} | {
        "reduction_factor": some.floats(1, HIDDEN),
        "block": some.sampled_from(["mlp", "conv", "attention"]),
        "gate": some.sampled_from(["scalar", "vector"]),
        "every_nth_layer": some.integers(1, 4),
    }
    return some.fixed_dictionaries(fields).map(lambda options: SideNetworkConfig(**options))


STRATEGIES = {
    "embedding_prompt": prompts,
    "parallel_mlp": parallel,
    "ipet": ipet,
    "time_freq_conv": convolutions,
    "bottleneck": blocks,
    "side_network": sides,
    "input_prompt": borders,
}
each_method = pytest.mark.parametrize("method", STRATEGIES)


@each_method
@examples(40)
@hypothesis.given(data=some.data())
def test_a_configuration_comes_back_from_every_form(method, data):
    config = data.draw(STRATEGIES[method](data.draw(some.sampled_from(sorted(HEADS)))))
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        assert PeftConfig.from_pretrained(folder) == config == type(config).from_pretrained(folder)
    assert get_peft_config(config.to_dict()) == type(config)(**config.to_dict()) == config
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


JUNK = some.recursive(
    some.one_of(
        some.none(), some.booleans(), some.integers(), some.floats(), some.text(max_size=4), some.binary(max_size=2)
    ),
    lambda inner: some.one_of(
        some.lists(inner, max_size=3),
        some.tuples(inner, inner),
        some.dictionaries(some.text(max_size=3), inner, max_size=2),
        some.frozensets(some.integers(), max_size=2),
    ),
    max_leaves=4,
)
OF_PEFT = ("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision")


@pytest.mark.parametrize(
    "config_cls", [IPETConfig, TimeFreqConvAdapterConfig, BottleneckAdapterConfig, InputPromptConfig]
)
@examples(120)
@hypothesis.given(data=some.data(), value=JUNK)
def test_any_value_is_kept_or_refused_by_name(config_cls, data, value):
    name = data.draw(some.sampled_from([field.name for field in fields(config_cls) if field.name not in OF_PEFT]))
    try:
        config = config_cls(**{name: value})
    except ValueError as error:
        message = str(error)
        forms = [value] if not isinstance(value, (list, tuple)) else [list(value), tuple(value)]  # JSON has lists only
        assert re.search(rf"^`{name}` must be .*, got ", message, re.DOTALL)
        assert any(repr(form) in message for form in forms)
        return
    if name != "base_settings":  # written by the package, with whatever the base model's configuration holds
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            assert PeftConfig.from_pretrained(folder) == config


# ---- on a model ------------------------------------------------------------------------------------------------------


def layers_of(config):
    layers = range(NUM_LAYERS) if config.layers_to_transform is None else config.layers_to_transform
    chosen = sorted({index % NUM_LAYERS for index in ([layers] if isinstance(layers, int) else layers)}, reverse=True)
    return sorted(chosen[:: getattr(config, "every_nth_layer", 1)])


def expected_parameters(config, backbone):
    """What each method trains beside the head, counted from its equations."""
    if isinstance(config, InputPromptConfig):
        p = config.prompt_size
        return 2 * p * 36 + 2 * p * (46 - 2 * p) if backbone == "ast" else 2 * p
    if isinstance(config, SideNetworkConfig):
        return count_side(config, len(layers_of(config)), backbone)
    return len(layers_of(config)) * sum(count(config, backbone) for count in counts_of(config))


def counts_of(config):
    if isinstance(config, TimeFreqConvAdapterConfig):
        return [count_convolutions]
    if isinstance(config, BottleneckAdapterConfig):
        return [count_blocks]
    return [count_prompts] * hasattr(config, "num_virtual_tokens") + [count_bottlenecks] * hasattr(config, "dropout")


def count_prompts(config, backbone):
    return config.num_virtual_tokens * HIDDEN


def width(config):
    return int(HIDDEN / config.reduction_factor) if config.reduction_factor else config.bottleneck_dim


def slopes(config):
    return 1 if config.activation == "prelu" else 0


def count_bottlenecks(config, backbone):
    widths = [width(config)]
    if config.spatial_adapter:
        widths.append(config.spatial_bottleneck_dim or width(config))
    biases = sum(h + HIDDEN for h in widths) * config.use_bias
    return sum(2 * HIDDEN * h for h in widths) + biases + len(widths) * (config.learn_scaling + slopes(config))


def count_convolutions(config, backbone):
    automatic = {"attention_kernel": (1, 3), "mlp_kernel": (3, 1) if backbone == "ast" else (1, 3)}
    total = 0
    for name, default in automatic.items():
        kernel = default if getattr(config, name) == "auto" else getattr(config, name)
        if kernel is not None:
            positions, h = kernel[0] * kernel[1], width(config)
            total += 2 * HIDDEN * h * positions + (h + HIDDEN) * config.use_bias + slopes(config)
    return total


def count_blocks(config, backbone):
    h = width(config)
    if config.block == "conformer":
        one = 2 * HIDDEN + (HIDDEN + 1) * 2 * h + h * config.conv_kernel + 2 * h + (h + 1) * HIDDEN
    else:
        one = 2 * HIDDEN * h + h + HIDDEN + slopes(config)
    norms = len([site for site in config.sites if backbone == "ast" or site == "mlp"]) * config.train_layer_norms
    return len(config.sites) * one + 2 * HIDDEN * norms


def count_side(config, num_layers, backbone):
    w, inner = int(HIDDEN / config.reduction_factor), 2 * int(HIDDEN / config.reduction_factor)
    taps = 9 if backbone == "ast" else 7
    mixing = {"mlp": 0, "conv": 2 * w + taps * w, "attention": 2 * w + 3 * w * w + w * w + w}[config.block]
    gates = 1 if config.gate == "scalar" else w
    one = (HIDDEN + 1) * w + gates + mixing + 2 * w + (w + 1) * inner + (inner + 1) * w + slopes(config)
    return num_layers * one + (2 * w + (w + 1) * HIDDEN if num_layers else 0)


def starts_as_the_base(config):
    if not layers_of(config):
        return True
    if isinstance(config, BottleneckAdapterConfig) and config.residual not in (None, config.placement == "sequential"):
        return False
    return config.init_weights and not hasattr(config, "num_virtual_tokens")


@each_backbone
@each_method
@examples(15)
@hypothesis.given(data=some.data())
def test_any_configuration_on_a_model(method, backbone, data):
    torch.manual_seed(0)
    config, inputs = data.draw(STRATEGIES[method](backbone)), make_inputs(backbone)
    base = make(backbone)
    expected = logits(base, inputs)
    model = get_peft_model(base, config).eval()
    assert model.get_nb_trainable_parameters()[0] == expected_parameters(config, backbone) + (
        0 if config.modules_to_save == [] else HEADS[backbone]
    )
    adapted = [i for i, layer in enumerate(layers_in(model)) if isinstance(layer, EncoderTunerLayer)]
    at_the_end = {NUM_LAYERS - 1} if method == "side_network" and layers_of(config) else set()
    assert adapted == ([] if method == "input_prompt" else sorted({*layers_of(config), *at_the_end}))
    start = logits(model, inputs)
    assert start.shape == expected.shape and start.isfinite().all()
    if starts_as_the_base(config):
        # Not to the last bit: the last layer of an AST leaves out what its head does not read.
        torch.testing.assert_close(start, expected, atol=2e-6, rtol=0)
    trained = logits(randomize(model), inputs)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = PeftModel.from_pretrained(make(backbone), folder, adapter_name="another")
    # Torch multiplies by frozen weights in another order than by trainable ones.
    torch.testing.assert_close(logits(again, inputs), trained)
    if not layers_of(config):  # PEFT does not switch off what has no layers
        return
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), expected)


def layers_in(model):
    base = model.get_base_model().base_model
    return base.layers if hasattr(base, "layers") else base.encoder.layers


@each_backbone
@examples(30)
@hypothesis.given(
    layers=some.one_of(some.integers(-5, 4), some.lists(some.integers(-5, 4), max_size=4, unique=True)),
    config_cls=some.sampled_from([EmbeddingPromptConfig, BottleneckAdapterConfig]),
)
def test_exactly_the_named_layers_are_adapted_or_none(backbone, layers, config_cls):
    model = make(backbone)
    names, hooks = list(model.state_dict()), count_hooks(model)
    listed = [layers] if isinstance(layers, int) else layers
    wanted = {index % NUM_LAYERS for index in listed}
    if len(wanted) < len(listed) or any(not -NUM_LAYERS <= index < NUM_LAYERS for index in listed):
        with pytest.raises(ValueError, match="`layers_to_transform` must be .*, got "):
            get_peft_model(model, config_cls(layers_to_transform=layers))
        assert list(model.state_dict()) == names and count_hooks(model) == hooks
        return
    adapted = get_peft_model(model, config_cls(layers_to_transform=layers, modules_to_save=[]))
    found = {int(re.search(r"layers\.(\d+)\.", name)[1]) for name in trainable(adapted)}
    assert found == wanted and len([m for m in adapted.modules() if isinstance(m, HookedTunerLayer)]) == len(wanted)


NAMES = some.text(some.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)


@functools.cache
def names_in_a_model():
    keys = get_peft_model(make("ast"), IPETConfig(), adapter_name="some adapter").state_dict()
    return {name for key in keys for name in key.split(".")}


def is_taken(name):
    """Whether the adapted model has something of this name, or torch could not keep a module under it."""
    return "." in name or hasattr(nn.ModuleDict(), name) or name in names_in_a_model()


@examples(25)
@hypothesis.given(name=NAMES, other=NAMES)
def test_an_adapter_of_any_name_comes_back_under_any_other(name, other):
    for each in (name, other):
        if is_taken(each):
            with pytest.raises(ValueError, match="`adapter_name` must .*Choose another name"):
                get_peft_model(make("ast"), IPETConfig(), adapter_name=each)
    hypothesis.assume(not is_taken(name) and not is_taken(other) and "/" not in name)
    model = randomize(get_peft_model(make("ast"), IPETConfig(), adapter_name=name)).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        # PEFT puts adapters of other names than its default one into folders of their own.
        saved = folder if name == "default" else f"{folder}/{name}"
        again = PeftModel.from_pretrained(make("ast"), saved, adapter_name=other)
    torch.testing.assert_close(logits(again, make_inputs("ast")), logits(model, make_inputs("ast")))


@pytest.mark.parametrize("backbone", ["ast", "wav2vec2", "wavlm", "whisper"])
@examples(12)
@hypothesis.given(number=some.integers(1, 60), data=some.data())
@torch.no_grad()
def test_any_number_of_prompts_shows_nowhere(backbone, number, data):
    torch.manual_seed(0)
    base, inputs = make(backbone), make_inputs(backbone)
    shapes = [states.shape for states in base(**inputs, output_hidden_states=True).hidden_states]
    model = get_peft_model(base, EmbeddingPromptConfig(num_virtual_tokens=number)).eval()
    outputs = model(**inputs, output_hidden_states=True)
    assert [states.shape for states in outputs.hidden_states] == shapes and outputs.logits.isfinite().all()
    if backbone != "wavlm":  # whose prompts have positions
        order = torch.tensor(data.draw(some.permutations(range(number))))
        for name, parameter in trainable(model).items():
            if "prompt" in name:
                parameter.copy_(parameter[order])
        torch.testing.assert_close(model(**inputs).logits, outputs.logits, atol=1e-4, rtol=1e-4)
