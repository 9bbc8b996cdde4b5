"""Adapted layers against the papers' equations, and the models against the outputs of the papers' own code."""

import functools
import json

import pytest
import torch
from peft import get_peft_model
from reference import NAMES, bottleneck, conformer, conv_bottleneck, convolve, encoder_layer
from safetensors.torch import load_file
from tiny import (
    BACKBONES,
    BESIDE_LAYERS,
    HIDDEN_SIZE,
    METHODS,
    NOT_IN_LAYERS,
    each_typical_backbone,
    make_ast,
    make_inputs,
    randomize,
    shared_path,
)

from peft_audio import (
    BottleneckAdapterConfig,
    EmbeddingPromptConfig,
    IPETConfig,
    ParallelMLPAdapterConfig,
    TimeFreqConvAdapterConfig,
)
from peft_audio.modules import Bottleneck, GridConv, TokenLayout
from peft_audio.tuner.encoder_layer import EncoderTunerLayer


def part_weights(layer, part):
    modules = layer.part(part)
    return {name: value.detach() for name, value in modules["default"].state_dict().items()} if modules else None


def beside(adapter, source="normalized"):
    """A block's output with an adapter beside it; `source` is what that reads."""
    return lambda residual, normalized, output: output + adapter(residual if source == "residual" else normalized)


def behind(adapter, residual_connection=True):
    return lambda residual, normalized, output: output * residual_connection + adapter(output)


def parallel_mlp(config, weights, layer):
    def adapter(part):
        return lambda x: bottleneck(x, weights[part], config.activation, weights[part].get("scaling", config.scaling))

    return {
        "mlp": beside(adapter("mlp_adapter"), config.adapter_input),
        "attention": behind(adapter("attention_adapter")) if config.spatial_adapter else None,
    }


def time_freq_conv(config, weights, layer):
    def adapter(part):
        return lambda x: conv_bottleneck(x, weights[part], GRIDS[layer.backbone])

    return {block: beside(adapter(f"{block}_adapter"), config.adapter_input) for block in ("attention", "mlp")}


def bottleneck_adapter(config, weights, layer):
    def adapter(part):
        return lambda x: bottleneck(x, weights[part], "gelu")

    def conformer_adapter(part):
        return lambda x: conformer(x, weights[part])

    make = conformer_adapter if config.block == "conformer" else adapter
    if config.placement == "parallel" and config.residual:
        return {site: (lambda a: lambda r, h, z: z + h + a(h))(make(f"{site}_adapter")) for site in config.sites}
    place = (
        beside
        if config.placement == "parallel"
        else functools.partial(behind, residual_connection=config.residual is not False)
    )
    return {site: place(make(f"{site}_adapter")) for site in config.sites}


def nothing(config, weights, layer):
    return {}


GRIDS = {"ast": (3, 4), "wav2vec2": (1, 9), "wav2vec2-stable": (1, 9)}
EQUATIONS = {
    EmbeddingPromptConfig: nothing,
    ParallelMLPAdapterConfig: parallel_mlp,
    IPETConfig: parallel_mlp,
    TimeFreqConvAdapterConfig: time_freq_conv,
    BottleneckAdapterConfig: bottleneck_adapter,
}
BOTH = ("attention", "mlp")
VARIANTS = {name: method for name, method in METHODS.items() if name not in (*NOT_IN_LAYERS, *BESIDE_LAYERS)} | {
    "time_freq_conv_residual": lambda: TimeFreqConvAdapterConfig(
        bottleneck_dim=6, attention_kernel=(1, 5), mlp_kernel=(1, 3), adapter_input="residual"
    ),
    "parallel_with_residual": lambda: BottleneckAdapterConfig(bottleneck_dim=8, sites=BOTH, residual=True),
    "sequential_without_residual": lambda: BottleneckAdapterConfig(
        bottleneck_dim=8, sites=BOTH, placement="sequential", residual=False
    ),
    "houlsby_sequential_norms": lambda: BottleneckAdapterConfig(
        bottleneck_dim=8, sites=BOTH, placement="sequential", train_layer_norms=True
    ),
    "pfeiffer_conformer_sequential": lambda: BottleneckAdapterConfig(
        bottleneck_dim=8, block="conformer", placement="sequential"
    ),
}


@each_typical_backbone
@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_follow_the_equations(backbone, variant):
    config = VARIANTS[variant]()
    model = randomize(get_peft_model(BACKBONES[backbone](), config)).eval()
    randomize_statistics(model)
    with torch.no_grad():
        model(**make_inputs(backbone))  # tells the layers their grid
    layers = [module for module in model.modules() if isinstance(module, EncoderTunerLayer)]
    tokens = torch.randn(2, 14 if backbone == "ast" else 9, HIDDEN_SIZE)
    for layer in layers:
        layer.backbone = backbone
        weights = {part: part_weights(layer, part) for part in layer.parts}
        prompt = weights["prompt"]
        frozen = {name: value.detach() for name, value in layer.base_layer.state_dict().items()}
        expected = encoder_layer(
            tokens,
            with_norms(frozen, weights, backbone),
            backbone,
            heads=4,
            prompt=None if prompt is None else prompt["embeddings"],
            **EQUATIONS[type(config)](config, weights, layer),
        )
        with torch.no_grad():
            actual = layer(tokens)
            layer.enable_adapters(False)
            plain = layer(tokens)
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)
        assert (actual - plain).abs().max() > 1e-3


def with_norms(frozen, weights, backbone):
    """The layer's weights, with the adapter's own in place of the norms in front of the blocks."""
    names = NAMES[backbone]
    in_front = {"mlp_norm": names["norm1" if backbone == "wav2vec2" else "norm2"], "attention_norm": names["norm1"]}
    own = {part: weights[part] or {} for part in in_front}
    return frozen | {f"{in_front[part]}.{name}": value for part in own for name, value in own[part].items()}


def randomize_statistics(model):
    for name, value in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            value.copy_(torch.rand(value.shape) + 0.5)


@pytest.mark.parametrize("kernel", [(1, 3), (3, 1), (1, 1), (3, 3), (5, 3)])
@pytest.mark.parametrize("special", [0, 2])
@pytest.mark.parametrize("channels", [(12, 4), (4, 12)])
def test_grid_convolution_position_by_position(kernel, special, channels):
    conv, tokens = GridConv(*channels, kernel), torch.randn(2, special + 8 * 64, channels[0])
    with torch.no_grad():
        actual = conv(tokens, TokenLayout((8, 64)))
    torch.testing.assert_close(actual, convolve(tokens, conv.weight.detach(), (8, 64)), atol=1e-5, rtol=1e-5)


def test_grid_convolution_is_the_library_s_on_the_grid():
    conv, tokens = GridConv(6, 3, (3, 3), bias=True), torch.randn(2, 8 * 64, 6, requires_grad=True)
    torch.nn.init.normal_(conv.bias)
    grid = tokens.transpose(1, 2).unflatten(2, (8, 64))
    expected = torch.nn.functional.conv2d(grid, conv.weight, conv.bias, padding=1).flatten(2).transpose(1, 2)
    actual = conv(tokens, TokenLayout((8, 64)))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    pairs = zip(*(torch.autograd.grad(y.square().sum(), [tokens, conv.weight, conv.bias]) for y in (actual, expected)))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_a_kernel_of_one_tap_is_a_bottleneck_without_bias():
    conv = Bottleneck(16, 4, torch.nn.GELU(), kernel=(1, 1), bias=False, init_weights=False)
    plain = Bottleneck(16, 4, torch.nn.GELU(), bias=False)
    plain.load_state_dict({name: value[:, :, 0, 0] for name, value in conv.state_dict().items()})
    tokens = torch.randn(2, 14, 16)
    assert torch.equal(conv(tokens, TokenLayout((3, 4))), plain(tokens))


@pytest.mark.parametrize("kernel", [None, (1, 3), (3, 1)])
@pytest.mark.parametrize("learn_scaling", [False, True])
def test_the_factor_is_on_all_that_a_bottleneck_gives(kernel, learn_scaling):
    options = {"kernel": kernel, "init_weights": False}
    scaled = Bottleneck(16, 4, torch.nn.GELU(), scaling=-0.3, learn_scaling=learn_scaling, **options)
    plain = Bottleneck(16, 4, torch.nn.GELU(), **options)
    torch.nn.init.normal_(scaled.up.bias)
    plain.load_state_dict(scaled.state_dict(), strict=not learn_scaling)
    factor = torch.tensor(-0.3, requires_grad=True)
    tokens, layout = torch.randn(2, 14, 16), TokenLayout((3, 4))
    actual, expected = scaled(tokens, layout), factor * plain(tokens, layout)
    torch.testing.assert_close(actual, expected)
    actual.square().sum().backward()
    expected.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    gradients |= {"scaling": factor.grad} if learn_scaling else {}
    for name, parameter in scaled.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name)


def test_a_learned_factor_needs_nothing_wide_for_the_backward_pass():
    saved, tokens = [], torch.randn(2, 14, 64)
    block = Bottleneck(64, 4, torch.nn.GELU(), scaling=0.1, learn_scaling=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    ):
        block(tokens)
    wide = [tensor for tensor in saved if tensor.numel() == tokens.numel()]
    assert wide and all(tensor.data_ptr() == tokens.data_ptr() for tensor in wide)


def test_a_grid_with_too_few_tokens_is_refused():
    with pytest.raises(ValueError, match="8 x 64 needs 512 tokens, got 511"):
        GridConv(4, 2, (1, 3))(torch.randn(1, 511, 4), TokenLayout((8, 64)))


GOLDEN = {
    "ipet_ast_block": lambda dims: IPETConfig(
        num_virtual_tokens=dims["prompts_k"], bottleneck_dim=dims["adapter_hidden"], scaling=dims["adapter_scale"]
    ),
    "ipet_ast_prompt_only": lambda dims: EmbeddingPromptConfig(num_virtual_tokens=dims["prompts_k"]),
    "aat_block_ms": lambda dims: ParallelMLPAdapterConfig(
        bottleneck_dim=dims["adapter_hidden"], activation="gelu", spatial_adapter=True
    ),
}
PETL = {
    "petl_houlsby_parallel": lambda dims: BottleneckAdapterConfig(bottleneck_dim=dims["adapter_hidden"], sites=BOTH),
    "petl_pfeiffer_sequential_residual": lambda dims: BottleneckAdapterConfig(
        bottleneck_dim=dims["adapter_hidden"], placement="sequential"
    ),
}
GOLDEN_PARTS = {
    "prompt": "prompt",
    "adapter": "mlp_adapter",
    "mlp_adapter": "mlp_adapter",
    "ffn_adapter": "mlp_adapter",
    "attn_adapter": "attention_adapter",
}


def golden(case, layer_norm_eps):
    """The tensors of a case, its dimensions, and the plain model that it was made with."""
    tensors = load_file(shared_path(f"golden/{case}.safetensors"))
    dims = json.loads(shared_path(f"golden/{case}.json").read_text())["dims"]
    model = make_ast(
        num_hidden_layers=dims["layers"],
        intermediate_size=dims["mlp"],
        time_stride=dims["stride"],
        frequency_stride=dims["stride"],
        max_length=dims["frames"],
        num_mel_bins=dims["mels"],
        layer_norm_eps=layer_norm_eps,
    )
    base = {name.removeprefix("base."): value for name, value in tensors.items() if name.startswith("base.")}
    missing, unexpected = model.load_state_dict(base, strict=False)
    assert not unexpected and all(name.startswith("classifier.") for name in missing)
    return tensors, dims, model


def assert_same_blocks(output, tensors, dims):
    for index in range(dims["layers"]):
        hidden_states, expected = output.hidden_states[index + 1], tensors[f"out.block{index}"]
        torch.testing.assert_close(hidden_states, expected, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_case_of_the_papers_code(case):
    tensors, dims, model = golden(case, layer_norm_eps=1e-6)
    model.classifier.layernorm.eps = 1e-5
    model = get_peft_model(model, GOLDEN[case](dims)).eval()
    load_golden_adapter(model, tensors)
    with torch.no_grad():
        output = model(tensors["in.input_values"], output_hidden_states=True)
        with model.disable_adapter():
            plain = model(tensors["in.input_values"])
    torch.testing.assert_close(plain.logits, tensors["plain.logits"], atol=5e-6, rtol=0)
    torch.testing.assert_close(output.logits, tensors["out.logits"], atol=5e-6, rtol=0)
    assert_same_blocks(output, tensors, dims)


@pytest.mark.parametrize("case", PETL)
def test_golden_case_with_a_head_on_all_tokens(case):
    tensors, dims, model = golden(case, layer_norm_eps=1e-12)
    model = get_peft_model(model.base_model, PETL[case](dims)).eval()
    load_golden_adapter(model, tensors)

    def logits(output):
        mean = output.last_hidden_state.mean(dim=1)
        return mean @ tensors["peft.head.weight"].T + tensors["peft.head.bias"]

    with torch.no_grad():
        output = model(tensors["in.input_values"], output_hidden_states=True)
        with model.disable_adapter():
            plain = model(tensors["in.input_values"])
    torch.testing.assert_close(logits(plain), tensors["plain.logits"], atol=5e-6, rtol=0)
    torch.testing.assert_close(logits(output), tensors["out.logits"], atol=5e-6, rtol=0)
    assert_same_blocks(output, tensors, dims)


def load_golden_adapter(model, tensors):
    """Put `peft.layers.N.<their part>.<fc1 or down>.<tensor>` where the same tensor of ours is, all of them."""
    rename = {"fc1": "down", "fc2": "up"}
    layers = [module for module in model.modules() if isinstance(module, EncoderTunerLayer)]
    for key, value in tensors.items():
        if not key.startswith("peft.layers."):
            continue
        _, _, index, part, *rest = key.split(".")
        path = [rename.get(name, name) for name in rest] or ["embeddings"]
        module = getattr(layers[int(index)], layers[0].prefix + GOLDEN_PARTS[part])["default"]
        parameter = module.get_parameter(".".join(path))
        with torch.no_grad():
            parameter.copy_(value.reshape(parameter.shape))
