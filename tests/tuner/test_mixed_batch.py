"""`adapter_names`: a different adapter, with its own head, for each sample of one batch."""

import pytest
import torch
from peft import get_peft_model
from tiny import METHODS, each_method, each_typical_backbone, make, make_inputs, make_padded_inputs, randomize

from peft_audio import EmbeddingPromptConfig, use_statistics_pooling
from peft_audio.backbones.table import resolve


NAMES = ["b", "__base__", "a", "b", "a"]


def with_two_adapters(base, first, second):
    model = randomize(get_peft_model(base, first, adapter_name="a"), std=0.5)
    model.add_adapter("b", second)
    model.set_adapter("b")
    return randomize(model, seed=3, std=0.5).eval()


def one_by_one(model, name, **inputs):
    if name == "__base__":
        with model.disable_adapter():
            return model(**inputs)
    model.set_adapter(name)
    return model(**inputs)


@each_typical_backbone
@pytest.mark.parametrize("method", ["ipet", "time_freq_conv", "bottleneck_sequential", "input_prompt", "linear_probe"])
@torch.no_grad()
def test_every_sample_gets_the_logits_of_its_adapter(backbone, method):
    model = with_two_adapters(make(backbone), METHODS[method](), METHODS[method]())
    inputs = make_inputs(backbone, batch_size=len(NAMES))
    expected = torch.stack([one_by_one(model, name, **inputs).logits[i] for i, name in enumerate(NAMES)])
    model.set_adapter("a")
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    mixed = model(**inputs, adapter_names=NAMES)
    torch.testing.assert_close(mixed.logits, expected)
    assert model.active_adapters == ["a"] and type(mixed) is type(model(**inputs))
    assert wanted == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    torch.testing.assert_close(model(**inputs).logits, one_by_one(model, "a", **inputs).logits)
    assert len({tuple(row.tolist()) for row in expected}) == len(NAMES)


def count_runs(model):
    """A list that grows by one with every run of the backbone."""
    runs = []
    resolve(model.get_base_model()).first_layer.feed_forward_norm.register_forward_hook(lambda *_: runs.append(1))
    return runs


@pytest.mark.parametrize("backbone", ["ast", "wav2vec2", "wav2vec2-stable", "wavlm", "sew-d", "whisper"])
@each_method
@torch.no_grad()
def test_adapters_of_one_size_run_over_the_backbone_together(backbone, method):
    model = with_two_adapters(make(backbone), METHODS[method](), METHODS[method]())
    inputs, names = make_inputs(backbone, batch_size=4), ["b", "a", "a", "b"]
    expected = torch.stack([one_by_one(model, name, **inputs).logits[i] for i, name in enumerate(names)])
    runs = count_runs(model)
    mixed = model(**inputs, adapter_names=names).logits
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-4)
    assert len(runs) == 1


@pytest.mark.parametrize("names, expected_runs", [(["a", "b"], 2), (["a", "__base__"], 2), (["a", "a"], 1)])
@torch.no_grad()
def test_adapters_with_other_numbers_of_prompts_run_on_their_own(names, expected_runs):
    prompts = [EmbeddingPromptConfig(num_virtual_tokens=count) for count in (1, 2)]
    model = with_two_adapters(make("ast"), *prompts)
    inputs = make_inputs("ast")
    expected = torch.stack([one_by_one(model, name, **inputs).logits[i] for i, name in enumerate(names)])
    model.set_adapter("a")
    runs = count_runs(model)
    torch.testing.assert_close(model(**inputs, adapter_names=names).logits, expected)
    assert len(runs) == expected_runs


@torch.no_grad()
def test_adapters_of_other_sizes_layers_and_heads():
    base = make("wav2vec2", use_weighted_layer_sum=True)
    prompts = {count: EmbeddingPromptConfig(num_virtual_tokens=count, layers_to_transform=[count]) for count in (1, 2)}
    prompts[2].modules_to_save = []
    model = with_two_adapters(base, prompts[1], prompts[2])
    batch, _ = make_padded_inputs("wav2vec2")
    names, labels = ["b", "a"], torch.tensor([1, 4])
    mixed = model(**batch, labels=labels, adapter_names=names, output_hidden_states=True)
    alone = [
        one_by_one(model, name, labels=labels[i : i + 1], **{key: value[i : i + 1] for key, value in batch.items()})
        for i, name in enumerate(names)
    ]
    torch.testing.assert_close(mixed.logits, torch.cat([output.logits for output in alone]))
    torch.testing.assert_close(mixed.loss, sum(output.loss for output in alone) / 2)
    assert [states.shape[0] for states in mixed.hidden_states] == [2] * 4


@torch.no_grad()
def test_tuples_and_positional_inputs():
    model = with_two_adapters(make("ast"), METHODS["ipet"](), METHODS["ipet"]())
    (values,) = make_inputs("ast").values()
    (logits,) = model(values, adapter_names=["a", "b"], return_dict=False)
    torch.testing.assert_close(logits, model(input_values=values, adapter_names=["a", "b"]).logits)


@torch.no_grad()
def test_statistics_are_those_of_the_real_frames():
    base = use_statistics_pooling(make("wav2vec2"))
    model = with_two_adapters(base, METHODS["parallel_mlp"](), METHODS["parallel_mlp"]())
    batch, alone = make_padded_inputs("wav2vec2")
    mixed = model(**batch, adapter_names=["b", "a"]).logits
    expected = [one_by_one(model, name, **clip).logits for name, clip in zip("ba", alone)]
    torch.testing.assert_close(mixed, torch.cat(expected), atol=1e-4, rtol=1e-4)


# The errors begin with the words that PEFT has for them.
LENGTH = "^Length of `adapter_names` should be the same as the number of inputs, but got "
UNKNOWN = r"^Trying to infer with non-existing adapter\(s\): c, d\..*the model: 'a', 'b'; '__base__' is the base model"
WRONG = {
    "unknown": (["d", "c"], UNKNOWN),
    "too few": (["a"], LENGTH + "1 names for a batch of 2 samples"),
    "none": ([], LENGTH + "0 names for a batch of 2 samples"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_names_are_refused(case):
    names, message = WRONG[case]
    model = with_two_adapters(make("ast"), METHODS["ipet"](), METHODS["ipet"]())
    expected = model(**make_inputs("ast")).logits
    with pytest.raises(ValueError, match=message):
        model(**make_inputs("ast"), adapter_names=names)
    assert torch.equal(model(**make_inputs("ast")).logits, expected)


def test_training_is_refused():
    model = with_two_adapters(make("ast"), METHODS["ipet"](), METHODS["ipet"]()).train()
    with pytest.raises(
        ValueError, match="^Cannot pass `adapter_names` when the model is in training mode. Call model.eval()"
    ):
        model(**make_inputs("ast"), adapter_names=["a", "b"])


@torch.no_grad()
def test_attention_maps_of_different_widths_are_refused():
    base = make("ast", attn_implementation="eager")
    model = with_two_adapters(
        base, EmbeddingPromptConfig(num_virtual_tokens=1), EmbeddingPromptConfig(num_virtual_tokens=2)
    )
    with pytest.raises(ValueError, match="The attentions of the adapters differ in shape"):
        model(**make_inputs("ast"), adapter_names=["a", "b"], output_attentions=True)
