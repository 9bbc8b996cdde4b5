"""Adapted models outside of eager mode: torch.export, ONNX and torch.compile give what the model itself gives."""

import copy

import pytest
import torch
from peft import get_peft_model
from tiny import BACKBONES, METHODS, make_inputs, make_padded_inputs, randomize, trainable
from torch.export import Dim


LABELS = torch.tensor([0, 3])
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
EXPORTED = [
    ("ast", "ipet"),
    ("ast", "aat_ms"),
    ("ast", "time_freq_conv"),
    ("ast", "bottleneck_parallel"),
    ("ast", "input_prompt"),
    ("wav2vec2", "ipet"),
]
CASES = [("ast", "ipet"), ("wav2vec2", "bottleneck_parallel")]
ONNX_CASES = [("ast", "ipet"), ("ast", "time_freq_conv"), ("wav2vec2", "ipet")]
each_case = pytest.mark.parametrize(("backbone", "method"), CASES)


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch.compiler.reset()


def adapted(backbone, method, num_hidden_layers=1, **settings):
    base = BACKBONES[backbone](num_hidden_layers=num_hidden_layers, **settings)
    model = randomize(get_peft_model(copy.deepcopy(base), METHODS[method]())).eval()
    inputs = make_inputs(backbone)
    # wav2vec2 installs hooks of its own in its first forward pass, with or without adapters, under a lock that
    # torch.compile cannot trace. So the model has to run once before it is compiled.
    assert not torch.allclose(logits(model, inputs), logits(base, inputs), **CLOSE)
    return model


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def dynamic_batch(inputs):
    return {name: {0: Dim("batch")} for name in inputs}


@pytest.mark.parametrize(("backbone", "method"), EXPORTED)
def test_the_exported_program_takes_any_batch_and_survives_a_file(backbone, method, tmp_path):
    model = adapted(backbone, method)
    inputs, others = make_inputs(backbone), make_inputs(backbone, batch_size=3, seed=5)
    expected = logits(model, others)
    program = torch.export.export(model.get_base_model(), (), inputs, dynamic_shapes=dynamic_batch(inputs))
    torch.export.save(program, tmp_path / "model.pt2")
    for exported in (program, torch.export.load(tmp_path / "model.pt2")):
        torch.testing.assert_close(logits(exported.module(), others), expected, **CLOSE)
    # Nothing of the trace stays behind in the model.
    assert torch.equal(logits(model, others), expected)


@each_case
def test_a_peft_model_is_exported_like_its_base_model(backbone, method):
    model = adapted(backbone, method)
    inputs, others = make_inputs(backbone), make_inputs(backbone, batch_size=3, seed=5)
    by_name = torch.export.export(model, (), inputs)
    torch.testing.assert_close(logits(by_name.module(), inputs), logits(model, inputs), **CLOSE)
    # Sizes that vary have to be named by position here: torch.export does not find them among **kwargs.
    by_position = torch.export.export(model, tuple(inputs.values()), dynamic_shapes=(({0: Dim("batch")},),))
    with torch.no_grad():
        output = by_position.module()(*others.values()).logits
    torch.testing.assert_close(output, logits(model, others), **CLOSE)


@pytest.mark.parametrize("method", ["ipet", "conformer"])
def test_length_and_padding_may_vary_in_the_exported_program(method):
    model = adapted("wav2vec2", method)
    inputs, _ = make_padded_inputs("wav2vec2")
    sizes = {name: {0: Dim.AUTO, 1: Dim.AUTO} for name in inputs}
    program = torch.export.export(model.get_base_model(), (), inputs, dynamic_shapes=sizes)
    samples, mask = torch.randn(3, 1200), torch.ones(3, 1200, dtype=torch.long)
    samples[1, 700:], mask[1, 700:] = 0, 0
    others = {"input_values": samples, "attention_mask": mask}
    expected = logits(model, others)
    assert not torch.allclose(logits(model, {"input_values": samples}), expected, **CLOSE)
    torch.testing.assert_close(logits(program.module(), others), expected, **CLOSE)


@pytest.mark.parametrize(("backbone", "method"), ONNX_CASES)
def test_onnx_runtime_gives_the_same_logits(backbone, method, tmp_path):
    reason = "ONNX export needs onnx and onnxscript, and onnxruntime to run it"
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=reason)
    runtime = pytest.importorskip("onnxruntime", reason=reason)
    model = adapted(backbone, method)
    # A batch that varies takes the exporter much longer; once is enough.
    varies = (backbone, method) == ("ast", "ipet")
    inputs = make_inputs(backbone)
    others = make_inputs(backbone, batch_size=3 if varies else 2, seed=5)
    torch.onnx.export(
        model.get_base_model(),
        (),
        tmp_path / "model.onnx",
        kwargs=inputs,
        dynamic_shapes=dynamic_batch(inputs) if varies else None,
        dynamo=True,
        verbose=False,
    )
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    output, *_ = session.run(None, {name: values.numpy() for name, values in others.items()})
    torch.testing.assert_close(torch.from_numpy(output), logits(model, others), **CLOSE)


# `fullgraph` makes a graph break an error. The backends need no compiler for C++.
@pytest.mark.parametrize(
    ("backbone", "method", "unwrap"), [(*case, False) for case in CASES] + [("ast", "ipet", True)]
)
def test_the_compiled_model_is_one_graph(backbone, method, unwrap):
    # Two layers: what the hooks leave behind in one must not be met in the next.
    model = adapted(backbone, method, num_hidden_layers=2)
    inputs, others = make_inputs(backbone), make_inputs(backbone, seed=5)
    expected = [logits(model, batch) for batch in (inputs, others)]
    compiled = torch.compile(model.get_base_model() if unwrap else model, fullgraph=True, backend="eager")
    torch.testing.assert_close(logits(compiled, inputs), expected[0], **CLOSE)
    # What the first batch left behind in the hooks asks for no second graph.
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(logits(compiled, others), expected[1], **CLOSE)


@pytest.mark.parametrize(
    ("backbone", "method", "settings"),
    [(*case, {}) for case in (*CASES, ("ast", "time_freq_conv"))]
    + [("wav2vec2", "parallel_mlp", {"use_weighted_layer_sum": True})],
)
def test_the_compiled_model_has_the_same_gradients(backbone, method, settings):
    model = adapted(backbone, method, **settings).train()
    inputs = make_inputs(backbone)
    expected = gradients(model, model, inputs)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for name, gradient in gradients(compiled, model, inputs).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def gradients(called, model, inputs):
    model.zero_grad()
    called(**inputs, labels=LABELS).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in trainable(model).items()}
