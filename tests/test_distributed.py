"""Training in several processes: the same gradients and weights as in one, and a file that one process can load."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from distributed_worker import (
    GRADIENTS,
    LAYERDROP,
    SHARDED,
    TRAINED,
    base_model,
    gradients,
    half_batch,
    joint_batch,
    run_trainer,
)
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny import BACKBONES, METHODS, make_inputs
from transformers import AutoFeatureExtractor

from peft_audio import AutoPeftModelForAudioClassification


TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
sys.path.append(str(TESTS / "examples"))

from runs import arguments  # noqa: E402
from sounds import save_ast, write_tones  # noqa: E402


WORKER = str(TESTS / "distributed_worker.py")
WEIGHTS = "adapter_model.safetensors"
TORCHRUN = ("torch.distributed.run", "--nproc_per_node", "2")
ACCELERATE = ("accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1", "--dynamo_backend", "no")
FSDP = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "mixed_precision": "no",
    "num_machines": 1,
    "machine_rank": 0,
    "num_processes": 2,
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_transformer_layer_cls_to_wrap": "EncoderTunerLayer",
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": False,
    },
}
ZERO3 = {
    "zero_optimization": {
        "stage": 3,
        "stage3_gather_16bit_weights_on_model_save": True,
        # Every parameter is spread, and whole only while its own module runs, as in a model that is too large otherwise.
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
    },
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


def launch(launcher, *command):
    """Run two processes to their end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    module, *options = launcher
    port_option = "--main_process_port" if module.startswith("accelerate") else "--master_port"
    path = os.pathsep.join([str(ROOT), str(TESTS), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", module, *options, port_option, str(port), *map(str, command)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher ends its processes then
        output, _ = process.communicate()
    assert process.returncode == 0, output[-4000:]


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    launch(TORCHRUN, WORKER, "ddp", folder)
    return folder


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    (folder / "fsdp.yaml").write_text(yaml.safe_dump(FSDP))
    launch((*ACCELERATE, "--config_file", str(folder / "fsdp.yaml")), WORKER, "sharded", folder)
    return folder


@pytest.fixture(scope="module")
def zero3(tmp_path_factory):
    pytest.importorskip("deepspeed", reason="ZeRO-3 is DeepSpeed's")
    folder = tmp_path_factory.mktemp("zero3")
    (folder / "zero3.json").write_text(json.dumps(ZERO3))
    options = ("--mixed_precision", "no", "--use_deepspeed", "--deepspeed_config_file", str(folder / "zero3.json"))
    launch((*ACCELERATE, *options), WORKER, "zero3", folder)
    return folder


def seen_by_both(folder, name):
    return [torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1)]


def assert_same(actual, expected, name):
    """The same but for rounding, relative to the whole tensor."""
    assert float((actual - expected).norm()) <= 1e-5 * float(expected.norm()), name


def mean_gradient(first, second):
    """Of two processes, one of which may have left the layer out."""
    present = [gradient for gradient in (first, second) if gradient is not None]
    return sum(present) / 2 if present else None


def expected_gradients(backbone, method, seeds):
    if seeds is None or seeds[0] == seeds[1]:
        return gradients(backbone, method, joint_batch(backbone), seeds and seeds[0])
    first, second = (gradients(backbone, method, half_batch(backbone, rank), seeds[rank]) for rank in (0, 1))
    return {name: mean_gradient(first[name], second[name]) for name in first}


@pytest.mark.parametrize("case", GRADIENTS)
def test_two_processes_have_the_gradients_of_one_with_both_batches(ddp, case):
    backbone, method, seeds = GRADIENTS[case]
    expected = expected_gradients(backbone, method, seeds)
    left_out = {name for name, gradient in expected.items() if gradient is None}
    assert bool(left_out) == (seeds is not None) and len(left_out) < len(expected) / 2
    for actual in seen_by_both(ddp, case):
        assert actual.keys() == expected.keys()
        assert {name for name, gradient in actual.items() if gradient is None} == left_out
        for name in expected.keys() - left_out:
            assert_same(actual[name], expected[name], name)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A function that gives what the Trainer sees and saves in this process, with both batches in one."""

    @functools.cache
    def run(backbone, **options):
        folder = tmp_path_factory.mktemp(backbone)
        seen = run_trainer(backbone, folder, batch_size=4, use_cpu=True, **options)
        return seen["metrics"], load_file(folder / WEIGHTS)

    return run


def check_run(folder, name, kind, backbone, expected, **base):
    """Compare the weights, metrics and logits of two processes with those of one, on a model made with `base`."""
    seen = seen_by_both(folder, name)
    assert not [process["error"] for process in seen if "error" in process]
    facts = [(process["processes"], process["kind"], process["saves"]) for process in seen]
    assert facts == [(2, kind, 1), (2, kind, 0)]
    metrics, tensors = expected
    actual = load_file(folder / name / WEIGHTS)
    assert actual.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert actual[key].shape == tensor.shape and actual[key].dtype == tensor.dtype
        assert_same(actual[key], tensor, key)
    model = PeftModel.from_pretrained(base_model(backbone, **base), folder / name).eval()
    with torch.no_grad():
        logits = model(**make_inputs(backbone)).logits
    for process in seen:
        torch.testing.assert_close(process["logits"], logits, atol=1e-6, rtol=1e-5)
        assert process["metrics"] == pytest.approx(metrics, rel=1e-5)


@pytest.mark.parametrize("backbone", TRAINED)
def test_the_trainer_in_two_processes_gives_the_adapter_of_one(ddp, single, backbone):
    check_run(ddp, backbone, "MULTI_CPU", backbone, single(backbone))


def test_the_trainer_draws_the_same_layers_to_leave_out_in_every_process(ddp, single):
    check_run(ddp, "layerdrop", "MULTI_CPU", "wav2vec2", single("wav2vec2", layerdrop=LAYERDROP))


def test_the_trainer_with_its_own_settings_gives_the_adapter_of_one_process(ddp, single):
    check_run(ddp, "stock", "MULTI_CPU", "wav2vec2", single("wav2vec2"))


def test_a_model_made_with_layerdrop_trains_under_a_plain_ddp(ddp):
    assert [json.loads((ddp / f"plain-{rank}.json").read_text()) for rank in (0, 1)] == [None, None]


def test_the_training_script_in_two_processes(tmp_path):
    data, out = write_tones(tmp_path / "data"), tmp_path / "out"
    save_ast(tmp_path / "ast")
    more = ("--num_virtual_tokens", "2", "--bottleneck_dim", "4", "--fold", "1", "--per_device_train_batch_size", "1")
    # Full batches: of an incomplete one, accelerate has the processes repeat clips, which count twice in the loss.
    more += ("--per_device_eval_batch_size", "3")
    launch(
        (*ACCELERATE, "--mixed_precision", "no", "--multi_gpu"),
        ROOT / "examples" / "train_classification.py",
        *arguments(tmp_path, out, *more),
    )
    # Two epochs of six clips, two a step.
    assert [folder.name for folder in out.glob("checkpoint-*")] == ["checkpoint-6"]
    results = json.loads((out / "all_results.json").read_text())
    assert results["adapter_bytes"] == (out / WEIGHTS).stat().st_size
    rows = [row.split(",") for row in (data / "metadata.csv").read_text().split()[1:]]
    rows = [(name, label) for name, label, fold in rows if fold == "1"]
    model = AutoPeftModelForAudioClassification.from_pretrained(out).eval()
    extractor = AutoFeatureExtractor.from_pretrained(out)
    clips = [soundfile.read(data / name)[0] for name, _ in rows]
    with torch.no_grad():
        logits = model(**extractor(clips, sampling_rate=16000, return_tensors="pt")).logits
    targets = torch.tensor([model.config.label2id[label] for _, label in rows])
    loss = torch.nn.functional.cross_entropy(logits, targets)
    assert results["eval_samples"] == len(rows) == 6
    assert results["eval_accuracy"] == pytest.approx(float((logits.argmax(-1) == targets).float().mean()))
    assert results["eval_loss"] == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize("name", SHARDED)
def test_fully_sharded_training_gives_the_adapter_of_one_process(fsdp, single, name):
    backbone, method, base = SHARDED[name]
    check_run(fsdp, name, "FSDP", backbone, single(backbone, method=method, **base), **base)
    assert all("FSDPEncoderTunerLayer" in process["units"] for process in seen_by_both(fsdp, name))


@pytest.mark.parametrize("name", SHARDED)
def test_zero3_training_gives_the_adapter_of_one_process(zero3, single, name):
    backbone, method, base = SHARDED[name]
    check_run(zero3, name, "DEEPSPEED", backbone, single(backbone, method=method, **base), **base)


def test_zero3_training_of_a_base_model_that_is_loaded_in_parts(zero3, single):
    check_run(zero3, "loaded", "DEEPSPEED", "ast", single("ast"))


def replicate(model):
    """A copy of `model` as torch.nn.DataParallel makes one for each GPU, on the CPU."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, copy in copies.items():
        for name, child in module._modules.items():
            copy._modules[name] = copies.get(child)
        for name, parameter in module._parameters.items():
            setattr(copy, name, parameter)
    return copies[model]


@pytest.mark.parametrize(
    "backbone, method", [("ast", "ipet"), ("wav2vec2", "time_freq_conv"), ("ast", "input_prompt")]
)
def test_data_parallel_is_refused(backbone, method):
    model = get_peft_model(BACKBONES[backbone](), METHODS[method]())
    with pytest.raises(RuntimeError, match="accelerate launch"):
        replicate(model)(**make_inputs(backbone))
