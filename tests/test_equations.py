"""Adapted layers against the papers' equations, and the models against the outputs of the papers' own code."""

import json

import pytest
import torch
from peft import get_peft_model
from reference import encoder_layer
from safetensors.torch import load_file
from tiny import BACKBONES, HIDDEN_SIZE, METHODS, each_method, each_typical_backbone, make_ast, randomize, shared_path

from peft_audio import EmbeddingPromptConfig, IPETConfig, ParallelMLPAdapterConfig
from peft_audio.layer import EncoderTunerLayer


def part_weights(layer, part):
    modules = getattr(layer, layer.prefix + part)
    return {name: value.detach() for name, value in modules["default"].state_dict().items()} if modules else None


@each_typical_backbone
@each_method
def test_layers_follow_the_equations(backbone, method):
    config = METHODS[method]()
    model = randomize(get_peft_model(BACKBONES[backbone](), config)).eval()
    layers = [module for module in model.modules() if isinstance(module, EncoderTunerLayer)]
    tokens = torch.randn(2, 9, HIDDEN_SIZE)
    for layer in layers:
        prompt, mlp = part_weights(layer, "prompt"), part_weights(layer, "mlp_adapter")
        if mlp is not None and "scaling" in mlp:
            config.scaling = mlp["scaling"]
        expected = encoder_layer(
            tokens,
            {name: value.detach() for name, value in layer.base_layer.state_dict().items()},
            backbone,
            heads=4,
            prompt=None if prompt is None else prompt["embeddings"],
            mlp=mlp,
            spatial=part_weights(layer, "attention_adapter"),
            config=config,
        )
        with torch.no_grad():
            actual = layer(tokens)
            layer.enable_adapters(False)
            plain = layer(tokens)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
        assert (actual - plain).abs().max() > 1e-3


GOLDEN = {
    "ipet_ast_block": lambda dims: IPETConfig(
        num_virtual_tokens=dims["prompts_k"], bottleneck_dim=dims["adapter_hidden"], scaling=dims["adapter_scale"]
    ),
    "ipet_ast_prompt_only": lambda dims: EmbeddingPromptConfig(num_virtual_tokens=dims["prompts_k"]),
    "aat_block_ms": lambda dims: ParallelMLPAdapterConfig(
        bottleneck_dim=dims["adapter_hidden"], activation="gelu", spatial_adapter=True
    ),
}
GOLDEN_PARTS = {"prompt": "prompt", "adapter": "mlp_adapter", "mlp_adapter": "mlp_adapter"} | {
    "attn_adapter": "attention_adapter"
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_case_of_the_papers_code(case):
    tensors = load_file(shared_path(f"golden/{case}.safetensors"))
    dims = json.loads(shared_path(f"golden/{case}.json").read_text())["dims"]
    model = make_ast(
        num_hidden_layers=dims["layers"],
        intermediate_size=dims["mlp"],
        time_stride=dims["stride"],
        frequency_stride=dims["stride"],
        max_length=dims["frames"],
        num_mel_bins=dims["mels"],
        layer_norm_eps=1e-6,
    )
    model.classifier.layernorm.eps = 1e-5
    model.load_state_dict({name[5:]: value for name, value in tensors.items() if name.startswith("base.")})
    model = get_peft_model(model, GOLDEN[case](dims)).eval()
    load_golden_adapter(model, tensors)
    with torch.no_grad():
        output = model(tensors["in.input_values"], output_hidden_states=True)
        with model.disable_adapter():
            plain = model(tensors["in.input_values"])
    torch.testing.assert_close(plain.logits, tensors["plain.logits"], atol=5e-6, rtol=0)
    torch.testing.assert_close(output.logits, tensors["out.logits"], atol=5e-6, rtol=0)
    for index in range(dims["layers"]):
        hidden_states, expected = output.hidden_states[index + 1], tensors[f"out.block{index}"]
        torch.testing.assert_close(hidden_states, expected, atol=5e-6, rtol=1e-5)


def load_golden_adapter(model, tensors):
    """Put `peft.layers.N.<their part>.<fc1 or down>.<tensor>` where the same tensor of ours is, all of them."""
    rename = {"fc1": "down", "fc2": "up"}
    layers = [module for module in model.modules() if isinstance(module, EncoderTunerLayer)]
    for key, value in tensors.items():
        if not key.startswith("peft."):
            continue
        _, _, index, part, *rest = key.split(".")
        path = [rename.get(name, name) for name in rest] or ["embeddings"]
        module = getattr(layers[int(index)], layers[0].prefix + GOLDEN_PARTS[part])["default"]
        parameter = module.get_parameter(".".join(path))
        with torch.no_grad():
            parameter.copy_(value.reshape(parameter.shape))
