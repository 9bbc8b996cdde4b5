"""Training steps in bfloat16 and float16 by autocast."""

import copy

import pytest
import torch
from on_device import BACKBONES, adapted, batch_for, loss_and_gradients
from tiny import METHODS, trainable


each_backbone = pytest.mark.parametrize("backbone", BACKBONES)
each_method = pytest.mark.parametrize("method", METHODS)


@each_method
@each_backbone
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_has_the_loss_of_float32_and_trains_everything(backbone, method, dtype, device):
    model, batch = adapted(backbone, method, device), batch_for(backbone, device)
    expected = loss_and_gradients(model, batch)[0]
    before = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10, enabled=dtype == torch.float16)
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    model.zero_grad()
    with torch.autocast(device.type, dtype=dtype):
        output = model(**batch)
    scaler.scale(output.loss).backward()
    scaler.unscale_(optimizer)
    torch.testing.assert_close(output.loss.float(), expected, rtol=0.05, atol=0.02)
    for name, parameter in trainable(model).items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.dtype == torch.float32, name
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() >= 2.0**10 or dtype != torch.float16  # no step was left out
    assert all(not torch.equal(parameter, before[name]) for name, parameter in trainable(model).items())


@each_backbone
def test_inference_leaves_what_training_under_autocast_needs(backbone, device):
    model, batch = adapted(backbone, "conformer", device), batch_for(backbone, device)
    fresh = copy.deepcopy(model)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        with torch.inference_mode():
            model(**batch)
        losses = [loss_and_gradients(each, batch)[0] for each in (model, fresh)]
    torch.testing.assert_close(*losses, rtol=0.01, atol=0.01)
