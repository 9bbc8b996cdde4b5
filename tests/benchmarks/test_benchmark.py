"""The benchmark: what it measures, against hooks, hand-counted numbers and the package's own models; and its script."""

import dataclasses
import json
import time

import benchmark
import pytest
import torch
from benchmarking import measure, pipeline, subjects, targets
from benchmarking.layer_wide import layer_wide
from benchmarking.measure import Precision
from benchmarking.subjects import (
    AST_128,
    AST_1024,
    IPET,
    IPET_HALF,
    IPET_LARGE,
    LAYER_WIDE,
    LAYER_WIDE_FROZEN,
    LORA,
    WAV2VEC2_1,
)
from benchmarking.targets import Outcome, Target
from peft import LoraConfig, get_peft_model
from tiny import METHODS, make, make_inputs, randomize
from torch import nn

from peft_audio import IPETConfig, save_activations_in_half
from peft_audio.tuner.read_tokens import remove_read_tokens


CPU = Precision()


def batch_for(backbone):
    return {**make_inputs(backbone), "labels": torch.tensor([0, 3])}


def bytes_by_hooks(model, batch):
    """What autograd saves, every storage once, without the model's own tensors and the batch."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers(), *batch.values()]}
    saved, kept = {}, []

    def pack(tensor):
        kept.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss
    saved.pop(loss.untyped_storage().data_ptr(), None)
    return sum(saved.values())


SMALL = {
    "full": lambda model: model,
    "LoRA": lambda model: get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"])),
    "time_freq_conv": lambda model: get_peft_model(model, METHODS["time_freq_conv"]()),
    "ipet": lambda model: get_peft_model(model, METHODS["ipet"]()),
}


@pytest.mark.parametrize("backbone", ["ast", "wav2vec2"])
@pytest.mark.parametrize("method", SMALL)
def test_saved_bytes_are_those_that_hooks_see(backbone, method):
    model, batch = SMALL[method](make(backbone)).train(), batch_for(backbone)
    # With hooks on saved tensors no layer leaves anything out, so neither may it without.
    remove_read_tokens(model.get_base_model() if hasattr(model, "get_base_model") else model)
    expected = bytes_by_hooks(model, batch)
    # Beside what autograd saves, a few small things live behind the loss: its weight, the logits.
    assert expected <= measure.saved_bytes(model, batch, CPU) <= expected + 256


def test_saved_bytes_see_what_hooks_inside_the_model_keep():
    model, batch = SMALL["ipet"](make("ast")).train(), batch_for("ast")
    whole = measure.saved_bytes(model, batch, CPU)
    assert measure.saved_bytes(save_activations_in_half(model), batch, CPU) < 0.8 * whole


def test_flops_of_a_linear_map_are_counted_by_hand():
    model = nn.Linear(5, 7)
    inputs = torch.randn(3, 5, requires_grad=True)
    assert measure.flops(lambda: model(inputs).sum().backward()) == 3 * (2 * 3 * 5 * 7)


def test_flops_of_attention_are_counted_by_hand():
    batch, heads, queries, keys, head_dim = 2, 3, 5, 7, 8
    query, key, value = (torch.randn(batch, heads, length, head_dim) for length in (queries, keys, keys))
    counted = measure.flops(lambda: nn.functional.scaled_dot_product_attention(query, key, value))
    assert counted == 2 * (2 * batch * heads * queries * keys * head_dim)


def test_counting_flops_leaves_adapted_layers_free_to_leave_something_out():
    model, batch = SMALL["ipet"](make("ast")).train(), batch_for("ast")

    def step():
        model(**batch).loss.backward()

    counted = measure.flops(step)
    remove_read_tokens(model.get_base_model())
    assert counted < 0.9 * measure.flops(step)


def test_functions_take_turns_and_the_median_counts(monkeypatch):
    called, now = [], [0.0]
    durations = {"a": iter([9, 1, 5, 2]), "b": iter([9, 3, 3, 8])}

    def function(name):
        def run():
            called.append(name)
            now[0] += next(durations[name])

        return run

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert measure.time_each({name: function(name) for name in "ab"}, 3, CPU) == {"a": 2, "b": 3}
    assert called == ["a", "b"] * 4


@pytest.mark.parametrize("backbone", ["ast", "wav2vec2", "wav2vec2-stable"])
def test_prompts_in_front_of_layers_give_what_the_packages_give(backbone):
    plain = layer_wide(make(backbone), num_prompts=3, bottleneck_dim=8).eval()
    own = get_peft_model(make(backbone), IPETConfig(num_virtual_tokens=3, bottleneck_dim=8)).eval()
    randomize(own)
    tensors = {name.replace("ipet_", "parallel_mlp_adapter_"): value for name, value in own.state_dict().items()}
    ours = {
        name.split("layers.")[1]: value
        for name, value in tensors.items()
        if "encoder.layers." in name or "layers" in name
    }
    state = plain.state_dict()
    for name in state:
        place = name.split("layers.")[1] if "layers." in name else None
        if place is None:
            state[name] = tensors[name]
        elif place.endswith(".prompts"):
            number = place.split(".")[0]
            state[name] = ours[f"{number}.parallel_mlp_adapter_prompt.default.embeddings"].unsqueeze(0)
        else:
            state[name] = ours[place.replace(".layer.", ".", 1)]
    plain.load_state_dict(state)
    inputs = make_inputs(backbone)
    torch.testing.assert_close(plain(**inputs).logits, own(**inputs).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("freeze", [False, True])
def test_the_front_end_of_the_reference_runs_backward_unless_it_is_frozen(freeze):
    model = layer_wide(make("wav2vec2"), 2, 4, freeze_feature_encoder=freeze).train()
    seen = []
    front_end = model.get_base_model().wav2vec2.feature_extractor
    front_end.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    model(**make_inputs("wav2vec2"))
    assert seen == [not freeze]
    assert not any(parameter.requires_grad for parameter in front_end.parameters())


def test_outcomes_are_ratios_of_what_was_measured():
    target = Target(AST_128, "ours", "theirs", "step_seconds", 0.7)
    rows = {(AST_128.name, "ours"): {"step_seconds": 3.0}, (AST_128.name, "theirs"): {"step_seconds": 4.0}}
    (outcome,) = targets.outcomes([target, Target(AST_1024, "ours", "theirs", "step_seconds", 0.7)], rows)
    assert outcome.value == 0.75 and outcome.is_reached is False
    assert Outcome("", 8, 7.5, at_least=True).is_reached and not Outcome("", 7, 7.5, at_least=True).is_reached
    assert Outcome("", 1, None).is_reached is None


@pytest.fixture
def small(monkeypatch):
    make_model = subjects.Input.make_model

    def make_tiny(source, dropout=True):
        return make_model(dataclasses.replace(source, is_tiny=True), dropout)

    monkeypatch.setattr(subjects.Input, "make_model", make_tiny)
    monkeypatch.setattr(pipeline, "SECONDS", 1)
    monkeypatch.setattr(pipeline, "torchaudio_fbank", lambda: None)


def test_everything_is_measured_and_written(small, tmp_path, capsys):
    inputs = [AST_1024.name, WAV2VEC2_1.name]
    report = benchmark.main(["--output_dir", str(tmp_path), "--device", "cpu", "--repeats", "1", "--inputs", *inputs])
    assert json.loads((tmp_path / "benchmark.json").read_text()) == report
    assert [row["input"] for row in report["rows"]] == [name for name in inputs for _ in subjects.SUBJECTS]
    for row in report["rows"]:
        assert row["step_seconds"] > 0 and row["forward_seconds"] > 0 and row["saved_bytes"] > 0
        assert (row["checkpoint_bytes"] is None) == (
            "whole layers" in row["method"] or "feature encoder frozen" in row["method"]
        )
    for name in inputs:
        flops = {row["method"]: row["flops"] for row in report["rows"] if row["input"] == name}
        assert flops[IPET] < flops[IPET_LARGE] < flops[LAYER_WIDE_FROZEN]
        # The feature encoder of this reference runs its backward pass. An AST has none.
        assert (flops[LAYER_WIDE_FROZEN] < flops[LAYER_WIDE]) == (name == WAV2VEC2_1.name)
    named = [target["name"] for target in report["targets"]]
    wanted = [target.name for name in inputs for target in targets.TARGETS if target.source.name == name]
    assert named[: len(wanted)] == wanted and len(named) == len(wanted) + 21
    assert "switching the active adapter" in capsys.readouterr().out


def test_steps_in_bfloat16_and_the_use_of_the_device(small, tmp_path):
    arguments = ["--output_dir", str(tmp_path), "--device", "cpu", "--dtype", "bfloat16", "--repeats", "1", "--inputs"]
    report = benchmark.main([*arguments, "--extras", "--batch_size", "2", "--peak_tflops", "1"])
    utilization, against_lora = report["targets"]
    assert 0 < utilization["value"] < 1 and against_lora["target"] == 1.0
    assert report["environment"]["dtype"] == "bfloat16"


def test_a_profile_tells_where_the_time_goes(small, tmp_path, capsys):
    shares = benchmark.main(["--output_dir", str(tmp_path), "--device", "cpu", "--profile", WAV2VEC2_1.name])
    assert list(shares) == [IPET] and 0.3 < sum(shares[IPET].values()) <= 1
    assert "aten::addmm" in shares[IPET] and "aten::addmm" in capsys.readouterr().out


def test_the_exact_figures_are_reached_at_real_size(tmp_path):
    start = time.perf_counter()
    methods = ["--methods", LORA, IPET, IPET_HALF]
    report = benchmark.main(["--output_dir", str(tmp_path), "--device", "cpu", "--quick", *methods])
    assert [target["reached"] for target in report["targets"]] == [True, True]
    assert time.perf_counter() - start < 120
    saved = {row["method"]: row["saved_bytes"] for row in report["rows"] if row["input"] == AST_1024.name}
    # LoRA saves 11 tensors of (1214, 768) in a layer: the norms' inputs, one's output, query, key, value, attention's
    # output, and four for GELU's input. All but the first norm's input, which has no gradient, and small change.
    token_bytes = 1214 * 768 * 4
    assert saved[LORA] == pytest.approx((12 * 11 - 1) * token_bytes, rel=0.02)
    # IPET has no need of a norm's output. Of the first layer it saves attention's input and output to no keys, and of
    # the last one only keys and values, and the input of the norm that makes them.
    assert saved[IPET] == pytest.approx((10 * 10 + 8 + 3) * token_bytes, rel=0.02)
