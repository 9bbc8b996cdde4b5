"""FSDP 1 with one process: an adapter with its head is trained, saved and loaded into the wrapped model, as LoRA is."""

import functools
import logging
from types import SimpleNamespace

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import fsdp_utils, load_fsdp_model, save_fsdp_model
from on_device import batch_for
from peft import LoraConfig, get_peft_model
from tiny import METHODS, make, make_inputs, randomize
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from peft_audio.backbones.table import resolve


# What accelerate's functions ask of an Accelerator.
ONE_PROCESS = SimpleNamespace(
    num_processes=1, process_index=0, is_main_process=True, is_fsdp2=False, wait_for_everyone=lambda: None
)
CONFIGS = {
    **METHODS,
    "LoRA of PEFT": functools.partial(LoraConfig, target_modules=["q_proj", "v_proj"]),
}
# PEFT looks for LoRA's tensors by names with FSDP's wrapper in them, which a state dict does not have: it saves the head.
LOST = pytest.mark.xfail(reason="PEFT 0.21.2 leaves LoRA's own tensors out")
EACH = [*METHODS, pytest.param("LoRA of PEFT", marks=LOST)]
HEADS = {"ast": ["classifier"], "wav2vec2": ["projector", "classifier"]}


@pytest.fixture(autouse=True)
def one_process(device, tmp_path, monkeypatch):
    # accelerate's own needs its state, which would be that of all tests that follow.
    monkeypatch.setattr(fsdp_utils, "logger", logging.getLogger(__name__))
    if not distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def adapted(backbone, method, seed=None):
    config = CONFIGS[method]()
    config.modules_to_save = HEADS[backbone]
    model = get_peft_model(make(backbone), config)
    return model if seed is None else randomize(model, seed=seed)


def sharded(model, device):
    """The model with a unit of FSDP around itself and one around each encoder layer."""
    layers = {type(model.get_submodule(name)) for name in layer_names(model)}
    return FullyShardedDataParallel(
        model.to(device), device_id=device, auto_wrap_policy=ModuleWrapPolicy(layers), use_orig_params=True
    )


def layer_names(model):
    base = model.get_base_model()
    names = {module: name for name, module in model.named_modules()}
    return [names[base.get_submodule(name)] for name in resolve(base).layer_names]


def logits(model, backbone, device):
    model.eval()
    with torch.no_grad():
        return model(**{name: value.to(device) for name, value in make_inputs(backbone).items()}).logits


@pytest.mark.parametrize("method", EACH)
@pytest.mark.parametrize("backbone", HEADS)
def test_a_trained_adapter_is_loaded_into_the_wrapped_model(backbone, method, device, tmp_path):
    """Given the model inside of FSDP's outer wrapper, as the Trainer does."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1, state_dict_type="FULL_STATE_DICT")
    device = torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
    model, fresh = adapted(backbone, method, seed=1), adapted(backbone, method)
    if any(parameter.dim() == 0 for parameter in model.parameters()):
        pytest.skip("FSDP 1 takes no parameters that are single numbers")
    trained = sharded(model, device).train()
    optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=0.1)
    trained(**batch_for(backbone, device)).loss.backward()
    optimizer.step()
    expected = logits(trained, backbone, device)
    save_fsdp_model(plugin, ONE_PROCESS, model, tmp_path, adapter_only=True)
    wrapped = sharded(fresh, device)
    assert not torch.allclose(logits(wrapped, backbone, device), expected, atol=1e-3)
    load_fsdp_model(plugin, ONE_PROCESS, fresh, tmp_path, adapter_only=True)
    torch.testing.assert_close(logits(wrapped, backbone, device), expected, atol=1e-5, rtol=1e-5)
