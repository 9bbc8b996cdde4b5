"""Compiled training steps of every method: the loss and gradients of the model as written, in one graph where the base is."""

import pytest
import torch
from on_device import adapted, batch_for, loss_and_gradients, relative_errors
from tiny import METHODS, make
from torch._dynamo.utils import counters


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def compile_and_explain(model, batch, device):
    """Loss and gradients of a compiled step, and the reasons for which the graph broke."""
    results = loss_and_gradients(model, batch, torch.compile(model, backend=backend_for(device)))
    return results, reasons_of_breaks()


def backend_for(device):
    return "inductor" if device.type == "cuda" else "aot_eager"  # CPUs may have no compiler for C++


def reasons_of_breaks():
    return {reason.splitlines()[0] for reason in counters["graph_break"]}


def breaks_of_the_base_model(backbone, batch, device):
    """The reasons of the base model's. Their number depends on where a graph breaks first."""
    model = make(backbone, num_hidden_layers=2).to(device).train()
    model(**batch)
    torch.compile(model, backend=backend_for(device))(**batch).loss.backward()
    reasons = reasons_of_breaks()
    torch.compiler.reset()
    counters.clear()
    return reasons


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", ["ast", "wav2vec2"])
def test_a_compiled_step_gives_what_the_model_gives(backbone, method, device):
    model, batch = adapted(backbone, method, device, num_hidden_layers=2), batch_for(backbone, device)
    allowed = breaks_of_the_base_model(backbone, batch, device)
    # wav2vec2 installs hooks in its first pass, under a lock that cannot be compiled.
    loss, expected = loss_and_gradients(model, batch)
    (compiled_loss, gradients), breaks = compile_and_explain(model, batch, device)
    assert breaks <= allowed
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-4, atol=1e-5)
    assert max(relative_errors(gradients, expected).values()) < 1e-2
