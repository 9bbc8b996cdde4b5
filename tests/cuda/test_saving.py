"""What is saved from one device is the same on another."""

import pytest
import torch
from on_device import adapted, batch_for, loss_and_gradients
from peft import PeftModel
from tiny import METHODS, make, make_inputs


@pytest.mark.parametrize("backbone", ["ast", "wav2vec2", "whisper"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("to_device", [True, False], ids=["to the device", "from the device"])
def test_an_adapter_moves_from_device_to_device(backbone, method, to_device, device, tmp_path):
    start, end = (torch.device("cpu"), device) if to_device else (device, torch.device("cpu"))
    model = adapted(backbone, method, start)
    loss_and_gradients(model, batch_for(backbone, start))
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make(backbone).to(end), tmp_path).eval()
    assert {parameter.device.type for parameter in loaded.parameters()} == {end.type}
    inputs = make_inputs(backbone)
    with torch.no_grad():
        logits = [
            each(**{name: value.to(place) for name, value in inputs.items()}).logits.cpu()
            for each, place in ((model, start), (loaded, end))
        ]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
