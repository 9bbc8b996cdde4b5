"""A model that takes cached states goes on being the model: for other input, other threads, copies, and after errors."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cached import SETUPS, Samples, batch_of, cache, logits, steps, unwrapped
from peft import get_peft_model
from tiny import METHODS, make, randomize

from peft_audio.tuner.encoder_layer import EncoderTunerLayer


@pytest.fixture
def cached_run(tmp_path):
    samples = Samples("wav2vec2", padded=True)
    model = randomize(SETUPS["upper_ipet"]("wav2vec2")).eval()
    return model, batch_of(samples), batch_of(cache(model, samples, tmp_path))


def stand_ins(model):
    return {path: vars(module)["forward"] for path, module in model.named_modules() if "forward" in vars(module)}


def test_raw_and_cached_batches_may_alternate_and_nothing_stays(cached_run):
    model, raw, cached = cached_run
    plain, before = randomize(SETUPS["upper_ipet"]("wav2vec2")).eval(), stand_ins(model)
    for batch in (raw, cached, raw, cached, raw):
        torch.testing.assert_close(logits(model, batch), logits(plain, batch_of(Samples("wav2vec2", True))))
    assert stand_ins(model) == before
    del raw["labels"], cached["labels"]
    torch.testing.assert_close(model(**cached, return_dict=False)[0], model(**raw).logits)
    assert model(**cached).loss is None
    base = model.unload()
    torch.testing.assert_close(logits(base, raw), logits(plain.unload(), raw))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_pass_leaves_the_model_as_it_was(cached_run, error):
    model, raw, cached = cached_run
    expected, before = logits(model, raw), stand_ins(model)

    def fail(module, args):
        raise error("stop")

    handle = unwrapped(model).wav2vec2.encoder.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(error, match="stop"):
        model(**cached)
    handle.remove()
    assert torch.equal(logits(model, raw), expected)
    torch.testing.assert_close(logits(model, cached), expected)
    with ThreadPoolExecutor(1) as pool:
        torch.testing.assert_close(pool.submit(logits, model, cached).result(20), expected)
    assert stand_ins(model) == before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_the_model_takes_both_too_and_on_its_own(copied, tmp_path):
    samples = Samples("ast")
    model = randomize(SETUPS["upper_ipet"]("ast")).eval()
    raw, cached = batch_of(samples), batch_of(cache(model, samples, tmp_path))
    expected = logits(model, raw)
    other = copied(model)
    randomize(model, seed=5)
    torch.testing.assert_close(logits(other, cached), expected)
    assert torch.equal(logits(other, raw), expected)
    assert not torch.allclose(logits(model, cached), expected, atol=1e-3)


def test_another_thread_may_run_raw_input_meanwhile(cached_run):
    model, raw, cached = cached_run
    expected, inside = logits(model, raw), []

    def run_in_thread(module, args):
        if threading.current_thread() is threading.main_thread():
            with ThreadPoolExecutor(1) as pool:
                inside.append(pool.submit(logits, model, raw).result(20))

    handle = unwrapped(model).wav2vec2.encoder.layers[1].register_forward_pre_hook(run_in_thread)
    torch.testing.assert_close(logits(model, cached), expected)
    handle.remove()
    torch.testing.assert_close(inside, [expected])


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("setup", ["linear_probe", "upper_ipet", "upper_lora"])
def test_gradient_checkpointing_gives_the_same_gradients(setup, use_reentrant, tmp_path):
    samples = Samples("wav2vec2")
    model = randomize(SETUPS[setup]("wav2vec2"))
    batch = batch_of(cache(model, samples, tmp_path))
    expected = steps(copy.deepcopy(model), batch_of(samples))
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    layer = unwrapped(model).wav2vec2.encoder.layers[1]
    if setup == "upper_lora" and type(layer).__call__ is not torch.nn.Module.__call__:
        with pytest.raises(RuntimeError, match="checkpointing of .*layers.1' cannot be used with cached states"):
            steps(model, batch)
        return
    torch.testing.assert_close(steps(model, batch), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("method", ["joint", "time_freq_conv"])
def test_layers_learn_the_grid_of_the_patches_that_are_left_out(method, tmp_path):
    model = randomize(get_peft_model(make("ast"), METHODS[method](layers_to_transform=[1, 2]))).eval()
    samples = Samples("ast")
    cached = cache(model, samples, tmp_path)
    expected = logits(model, batch_of(samples))
    for module in model.modules():
        if isinstance(module, EncoderTunerLayer):
            module.forward_pass.current.grid = (1, 1)
    torch.testing.assert_close(logits(model, batch_of(cached)), expected)


def test_data_sets_of_different_lengths_serve_one_model(tmp_path):
    model = randomize(SETUPS["upper_ipet"]("wav2vec2")).eval()
    short, long = Samples("wav2vec2"), Samples("wav2vec2")
    short.inputs = short.inputs[:, :600]
    cached = [cache(model, samples, tmp_path) for samples in (short, long)]
    for samples, states in zip((short, long), cached):
        torch.testing.assert_close(logits(model, batch_of(states)), logits(model, batch_of(samples)))


def test_weights_that_moved_and_did_not_change_are_taken(cached_run):
    model, raw, cached = cached_run
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    torch.testing.assert_close(logits(model, cached), logits(model, raw))
