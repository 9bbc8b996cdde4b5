"""`adapter_names`: every sample has the logits of its own adapter."""

import pytest
import torch
from on_device import BACKBONES
from peft import get_peft_model
from tiny import METHODS, make, make_inputs, randomize


NAMES = ["b", "__base__", "a", "b", "a"]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@torch.no_grad()
def test_every_sample_has_the_logits_of_its_adapter(backbone, method, dtype, device):
    model = get_peft_model(make(backbone), METHODS[method](), adapter_name="a")
    model.add_adapter("b", METHODS[method]())
    for seed, name in enumerate("ab"):
        model.set_adapter(name)
        randomize(model, seed=seed, std=0.3)
    model.to(device).eval()
    inputs = {name: value.to(device) for name, value in make_inputs(backbone, batch_size=len(NAMES)).items()}

    def one_by_one(name):
        if name == "__base__":
            with model.disable_adapter():
                return model(**inputs).logits
        model.set_adapter(name)
        return model(**inputs).logits

    tolerance = 1e-4 if dtype is None else 0.05
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        alone = {name: one_by_one(name) for name in ("a", "b", "__base__")}
        expected = torch.stack([alone[name][i] for i, name in enumerate(NAMES)])
        mixed = model(**inputs, adapter_names=NAMES).logits
    torch.testing.assert_close(mixed, expected, atol=tolerance, rtol=tolerance)
    assert not torch.allclose(alone["a"], alone["b"], atol=tolerance, rtol=tolerance)
