"""Training from cached states of a frozen part that runs on the device."""

import copy

import pytest
import torch
from cached import SETUPS, Samples, batch_of, cache, steps
from tiny import randomize


@pytest.mark.parametrize("backbone", ["ast", "wav2vec2", "whisper"])
@pytest.mark.parametrize("setup", ["linear_probe", "upper_ipet", "upper_lora"])
def test_training_is_the_same_as_from_the_input(backbone, setup, device, tmp_path):
    samples = Samples(backbone)
    model = randomize(SETUPS[setup](backbone)).to(device)
    states = cache(model, samples, tmp_path)

    def batch(data):
        return {name: value.to(device) for name, value in batch_of(data).items()}

    expected = steps(copy.deepcopy(model), batch(samples))
    torch.testing.assert_close(steps(model, batch(states)), expected, rtol=1e-3, atol=1e-4)
