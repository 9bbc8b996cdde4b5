"""Whatever cached states depend on, a change of it is noticed, also one that torch does not count."""

import copy
import pickle

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from cached import SETUPS, Samples, batch_of, cache, frozen_head, logits, unwrapped, with_lora
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import randomize
from torch import nn
from torch.nn.utils import prune

from peft_audio.backbones.table import resolve
from peft_audio.caching import frozen_part


BATCH_NORMS = "wav2vec2-conformer-rotary"


def first_layer(model):
    return unwrapped(model).wav2vec2.encoder.layers[0]


def weight(model):
    return first_layer(model).feed_forward.output_dense.weight


def add(tensor, value):
    with torch.no_grad():
        tensor.add_(value)


def swap_rows(model):
    values = weight(model).detach().numpy()
    values[[0, 1]] = values[[1, 0]]


def one_bit(model):
    weight(model).detach().numpy().view(np.int32)[5, 7] ^= 1


def wrap_forward_of_first_layer(model):
    layer = first_layer(model)
    own = layer.forward
    layer.forward = lambda *args, **kwargs: scaled(own(*args, **kwargs))


def scaled(output):
    return (3 * output[0], *output[1:]) if isinstance(output, tuple) else 3 * output


def later_dropout(model):
    unwrapped(model).wav2vec2.encoder.dropout.p = 0.5


def later_setting(model):
    model.config.layerdrop = 0.5


def pruned(model):
    prune.random_unstructured(first_layer(model).feed_forward.output_dense, "weight", 0.5)


VALUES = "Weights or buffers of the frozen part.*have changed.*Call cache_frozen again"
COMPUTATION = "computes something else now: a hook, a function, a module or an attribute"
CHANGES = {
    "Tensor.data": (lambda model: weight(model).data.mul_(3), VALUES),
    "NumPy": (
        lambda model: np.multiply(weight(model).detach().numpy(), 3, out=weight(model).detach().numpy()),
        VALUES,
    ),
    "storage": (lambda model: weight(model).untyped_storage().fill_(0), VALUES),
    "swapped rows": (swap_rows, VALUES),
    "one bit": (one_bit, VALUES),
    "new tensor": (lambda model: setattr(weight(model), "data", weight(model).data * 3), VALUES),
    "dtype": (lambda model: unwrapped(model).wav2vec2.bfloat16(), VALUES),
    "pruning": (pruned, VALUES),
    "hook": (lambda model: first_layer(model).register_forward_hook(lambda m, a, o: scaled(o)), COMPUTATION),
    "pre-hook": (lambda model: first_layer(model).register_forward_pre_hook(lambda m, a: scaled(a)), COMPUTATION),
    "forward": (wrap_forward_of_first_layer, COMPUTATION),
    "attribute": (lambda model: setattr(first_layer(model).layer_norm, "eps", 1.0), COMPUTATION),
    "module": (
        lambda model: setattr(first_layer(model).feed_forward, "intermediate_act_fn", nn.Tanh()),
        COMPUTATION,
    ),
    "dropout": (later_dropout, r"training mode.*Dropout.*It did not when the states were computed"),
    "setting": (later_setting, r"training mode.*config.layerdrop=0.5"),
}


@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES)
def test_states_are_refused_after_a_change_that_torch_does_not_count(change, message, tmp_path):
    model, samples = randomize(SETUPS["upper_ipet"]("wav2vec2")), Samples("wav2vec2")
    batch = batch_of(cache(model, samples, tmp_path))
    expected = logits(model, batch)
    other = copy.deepcopy(model)
    change(model)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            model(**batch)
    torch.testing.assert_close(logits(other, batch), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_notices_what_was_changed_before_its_first_batch(copied, tmp_path):
    model, samples = randomize(SETUPS["upper_ipet"]("ast")), Samples("ast")
    batch = batch_of(cache(model, samples, tmp_path))
    for change, message in (
        (lambda layer: layer.layernorm_before.weight.data.mul_(3), VALUES),
        (lambda layer: setattr(layer.layernorm_before, "eps", 1.0), COMPUTATION),
    ):
        other = copied(model)
        change(unwrapped(other).get_submodule(resolve(unwrapped(other)).layer_names[0]))
        with pytest.raises(RuntimeError, match=message):
            other(**batch)


def batch_norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]


BUFFERS = {
    "in place": lambda model, raw: batch_norms(model)[0].running_var.mul_(3),
    "Tensor.data": lambda model, raw: batch_norms(model)[0].running_var.data.mul_(3),
    "training from raw input": lambda model, raw: model.train()(**raw),
}


@pytest.mark.parametrize("change", BUFFERS.values(), ids=BUFFERS)
def test_states_are_refused_after_a_buffer_has_changed(change, tmp_path):
    model, samples = randomize(with_lora(BATCH_NORMS)), Samples(BATCH_NORMS)
    batch = batch_of(cache(model, samples, tmp_path, BATCH_NORMS))
    model.train()(**batch).loss.backward()
    change(model, batch_of(samples))
    with pytest.raises(RuntimeError, match=VALUES):
        model(**batch)
    again = batch_of(cache(model, samples, tmp_path, BATCH_NORMS))
    torch.testing.assert_close(logits(model.eval(), again), logits(model, batch_of(samples)))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_flip_of_any_frozen_bit_is_noticed_and_one_elsewhere_is_not(data, tmp_path_factory):
    model, samples = with_lora(BATCH_NORMS).eval(), Samples(BATCH_NORMS)
    batch = batch_of(cache(model, samples, tmp_path_factory.getbasetemp() / "flips", BATCH_NORMS))
    tensors = dict(unwrapped(model).named_parameters()) | dict(unwrapped(model).named_buffers())
    name = data.draw(st.sampled_from(sorted(tensors)))
    values = tensors[name].detach().reshape(-1).numpy().view(np.uint8)
    values[data.draw(st.integers(0, len(values) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if any(
        part in name
        for part in ("encoder.layers.1.", "encoder.layers.2.", "projector", "classifier", "encoder.layer_norm")
    ):
        logits(model, batch)
    else:
        with pytest.raises(RuntimeError, match=VALUES):
            model(**batch)


def test_what_changes_nothing_is_no_reason_to_refuse(tmp_path):
    model, samples, seen = randomize(SETUPS["upper_ipet"]("wav2vec2")).eval(), Samples("wav2vec2"), []
    batch = batch_of(cache(model, samples, tmp_path))
    expected = logits(model, batch)
    first_layer(model).register_forward_hook(lambda module, args, output: seen.append(module))
    first_layer(model).note = "looked at"
    model.config.note = "read"
    unwrapped(model).set_attn_implementation("eager")
    model.gradient_checkpointing_enable()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.testing.assert_close(logits(model, batch), expected)
    looks = len(seen)
    torch.testing.assert_close(logits(model, batch), expected)
    assert looks > 1 and len(seen) == looks + 1, "a sample is run once after a change, and not at every batch"
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.fixture
def fresh_accelerate():
    """Accelerate keeps the first precision that a process asked for, which other tests did."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("backbone", ["ast", "wav2vec2"])
def test_mixed_precision_around_the_model_is_rounding(backbone, tmp_path):
    model, samples = randomize(frozen_head(backbone)), Samples(backbone)
    batch = batch_of(cache(model, samples, tmp_path))
    expected = logits(model, batch)
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    torch.testing.assert_close(logits(prepared, batch), expected, rtol=0.05, atol=0.05)
    first = model.get_submodule(resolve(model).layer_names[0])
    first.register_forward_hook(lambda module, args, output: scaled(output))
    with pytest.raises(RuntimeError, match=COMPUTATION):
        prepared(**batch)


# ---- how often -------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Large frozen parts, which take a second to read, by a clock that stands still otherwise."""
    times = {"now": 100.0, "checks": 0}
    digest_of = frozen_part.digest_of

    def read(*args):
        times["now"] += 1
        times["checks"] += 1
        return digest_of(*args)

    monkeypatch.setattr(frozen_part, "SMALL_BYTES", 0)
    monkeypatch.setattr(frozen_part, "digest_of", read)
    monkeypatch.setattr(frozen_part, "perf_counter", lambda: times["now"])
    return times


def cached_model(folder):
    model = SETUPS["upper_ipet"]("wav2vec2").eval()
    return model, batch_of(cache(model, Samples("wav2vec2"), folder))


def test_a_large_frozen_part_is_read_again_within_a_known_time(clock, tmp_path):
    model, batch = cached_model(tmp_path)
    for _ in range(3):
        logits(model, batch)
    assert clock["checks"] == 1, "the first batch is checked, those right after are not"
    weight(model).data.mul_(3)
    clock["now"] += 1 / frozen_part.CHECK_SHARE - 2
    logits(model, batch)
    clock["now"] += 1
    with pytest.raises(RuntimeError, match=VALUES):
        model(**batch)


def test_reading_takes_the_share_of_the_time_that_is_documented(clock, tmp_path):
    model, batch = cached_model(tmp_path)
    logits(model, batch)
    start, clock["checks"] = clock["now"], 0
    for _ in range(400):
        clock["now"] += 0.5
        logits(model, batch)
    assert 0 < clock["checks"] <= frozen_part.CHECK_SHARE * (clock["now"] - start)


NOW = {
    "training mode": (lambda model: model.train(), True),
    "a count of torch": (lambda model: add(weight(model), 0), True),
    "a buffer": (lambda model: first_layer(model).register_buffer("mark", torch.zeros(1)), True),
    "a counted change of what trains": (lambda model: add(unwrapped(model).classifier.weight, 0), False),
}


@pytest.mark.parametrize("event, is_due", NOW.values(), ids=NOW)
def test_a_large_frozen_part_is_read_at_once_after(event, is_due, clock, tmp_path):
    model, batch = cached_model(tmp_path)
    logits(model, batch)
    weight(model).data.mul_(3)
    event(model)
    if is_due:
        with pytest.raises(RuntimeError, match=VALUES):
            model(**batch)
    else:
        logits(model, batch)


# ---- the folder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hook", "forward", "attribute", "module"])
def test_entries_of_a_model_that_computes_something_else_are_refused(name, tmp_path):
    model, samples = randomize(SETUPS["upper_ipet"]("wav2vec2")).eval(), Samples("wav2vec2")
    earlier = cache(model, samples, tmp_path / "states")
    CHANGES[name][0](model)
    with pytest.raises(ValueError, match="the states of sample 0 are not those .*another folder"):
        cache(model, samples, tmp_path / "states")
    later = cache(model, samples, tmp_path / "other")
    torch.testing.assert_close(logits(model, batch_of(later)), logits(model, batch_of(samples)))
    with pytest.raises(RuntimeError, match="cache_frozen was called again"):
        earlier[0]
