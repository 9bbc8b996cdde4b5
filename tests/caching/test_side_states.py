"""Training a side network from what the encoder layers gave once: no layer runs, and the losses are those of the input."""

import copy
import logging

import pytest
import torch
from cached import Samples, batch_of, cache, steps, unwrapped
from peft import get_peft_model
from safetensors.torch import load_file
from tiny import BACKBONES, BESIDE_LAYERS, METHODS, WITH_PADDING, make, randomize, trainable
from torch.utils.flop_counter import FlopCounterMode

from peft_audio.backbones.table import resolve


def adapted(backbone="ast", method="side_network", **options):
    model = make(backbone, **({"use_weighted_layer_sum": True} if options.pop("weighted", False) else {}))
    return randomize(get_peft_model(model, METHODS[method](**options)))


def flops_of_layers(model, batch):
    model = copy.deepcopy(model).requires_grad_(False)
    model(**batch)  # a copy checks by a sample first that it computes the same
    with FlopCounterMode(display=False) as counter:
        model(**batch)
    names = [f".{name}.base_layer" for name in resolve(unwrapped(model)).layer_names]
    names += ["feature_extractor", "feature_projection", "embeddings", "pos_conv_embed", ".conv1", ".conv2"]
    counts = counter.get_flop_counts()
    return sum(sum(counts[name].values()) for name in counts if name.endswith(tuple(names)))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", BESIDE_LAYERS)
def test_losses_are_those_of_the_input_and_no_layer_runs(backbone, method, tmp_path):
    samples = Samples(backbone, padded=backbone in WITH_PADDING)
    model = adapted(backbone, method)
    cached = cache(model, samples, tmp_path, backbone)
    losses, gradients, _ = steps(copy.deepcopy(model), batch_of(samples))
    ours, our_gradients, _ = steps(model, batch_of(cached))
    torch.testing.assert_close(ours, losses, atol=1e-3, rtol=0)
    assert our_gradients.keys() == gradients.keys() == trainable(model).keys()
    for name, gradient in gradients.items():  # from states of 11 bits
        assert (our_gradients[name] - gradient).norm() <= 0.02 * gradient.norm() + 1e-4, name
    model.eval()
    assert flops_of_layers(model, batch_of(samples)) > flops_of_layers(model, batch_of(cached)) == 0


@pytest.mark.parametrize("method", BESIDE_LAYERS)
@pytest.mark.parametrize("options", [{"layers_to_transform": [0]}, {"every_nth_layer": 2}])
def test_layers_that_are_not_read_are_left_out(method, options, tmp_path):
    model, samples = adapted("wav2vec2", method, **options), Samples("wav2vec2", padded=True)
    cached = cache(model, samples, tmp_path)
    assert cached[0]["input_values"].shape == (2 * 38, 32)  # of two of three layers
    losses = [steps(copy.deepcopy(model), batch_of(data))[0] for data in (samples, cached)]
    torch.testing.assert_close(*losses, atol=1e-3, rtol=0)


def test_the_tokens_that_a_head_reads_are_kept_in_half_and_their_size_is_said_first(tmp_path, caplog):
    model, samples = adapted(), Samples("ast")
    with caplog.at_level(logging.WARNING, "peft_audio"):
        cached = cache(model, samples, tmp_path)
    (message,) = (record.getMessage() for record in caplog.records if record.name == "peft_audio.caching.fill")
    entries = list(tmp_path.rglob("*.safetensors"))
    assert "4 samples takes 3.58e-06 GB" in message
    assert 4 * 2 * 3 * 2 * 32 < sum(path.stat().st_size for path in entries) < 3.58e3
    assert cached[0]["input_values"].shape == (1, 3 * 2, 32) and cached[0]["input_values"].dtype == torch.float32
    assert {load_file(path)["states"].dtype for path in entries} == {torch.float16}
    caplog.clear()
    with caplog.at_level(logging.WARNING, "peft_audio"):
        cache(model, samples, tmp_path)
    assert not caplog.records


def test_numbers_too_large_for_float16_are_kept_in_bfloat16(tmp_path):
    model, samples = adapted("ast", "side_conv"), Samples("ast")
    layer = unwrapped(model).base_model.layers[0]
    with torch.no_grad():
        layer.base_layer.mlp.fc2.bias[0] = 1e5
    cached = cache(model, samples, tmp_path)
    assert {load_file(path)["states"].dtype for path in tmp_path.rglob("*.safetensors")} == {torch.bfloat16}
    assert batch_of(cached)["input_values"].isfinite().all()


def test_states_of_other_blocks_are_other_states(tmp_path):
    samples = Samples("ast")
    sizes = [cache(adapted("ast", method), samples, tmp_path)[0]["input_values"].shape for method in BESIDE_LAYERS]
    assert sizes == [(1, 6, 32), (1, 42, 32), (1, 42, 32)]
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2  # both of all tokens


def test_another_active_adapter_is_refused(tmp_path):
    model, samples = adapted(layers_to_transform=[1]), Samples("ast")
    model.add_adapter("second", METHODS["side_network"](layers_to_transform=[0]))
    cached = cache(model, samples, tmp_path)
    model.set_adapter("second")
    with pytest.raises(RuntimeError, match="Another adapter is active now.*call cache_frozen again"):
        model(**batch_of(cached))
    model.set_adapter("default")
    assert model(**batch_of(cached)).loss.isfinite()
    with model.disable_adapter(), pytest.raises(RuntimeError, match="Another adapter is active now"):
        model(**batch_of(cached))


def test_changes_of_the_encoder_are_noticed(tmp_path):
    model, samples = adapted(), Samples("ast")
    cached = cache(model, samples, tmp_path)
    with torch.no_grad():
        unwrapped(model).base_model.layers[1].base_layer.mlp.fc1.bias += 1
    with pytest.raises(RuntimeError, match="have changed since the states were computed"):
        model(**batch_of(cached))


def test_weights_of_hidden_states_are_refused(tmp_path):
    with pytest.raises(ValueError, match="use_weighted_layer_sum"):
        cache(adapted("wav2vec2", weighted=True), Samples("wav2vec2"), tmp_path)


def test_several_active_adapters_are_cached_in_front_of_the_first_layer(tmp_path):
    model, samples = adapted(modules_to_save=[]), Samples("ast")
    model.add_adapter("second", METHODS["side_conv"](modules_to_save=[]))
    model.base_model.set_adapter(["default", "second"])
    cached = cache(model, samples, tmp_path)
    assert cached[0]["input_values"].shape == (1, 14, 32)
    torch.testing.assert_close(model(**batch_of(cached)).loss, model(**batch_of(samples)).loss)
