"""`save_activations_in_half`: gradients, and the memory that it saves."""

import pytest
import torch
from on_device import adapted, batch_for, loss_and_gradients, relative_errors
from peft import get_peft_model
from tiny import METHODS, make, randomize

from peft_audio import save_activations_in_half


@pytest.mark.parametrize("backbone", ["ast", "wav2vec2", "whisper"])
@pytest.mark.parametrize("method", ["ipet", "aat_ms", "time_freq_conv", "conformer"])
def test_gradients_are_those_to_a_third_of_a_percent(backbone, method, device):
    model, batch = adapted(backbone, method, device), batch_for(backbone, device)
    loss, expected = loss_and_gradients(model, batch)
    half_loss, gradients = loss_and_gradients(save_activations_in_half(model), batch)
    torch.testing.assert_close(half_loss, loss)
    assert max(relative_errors(gradients, expected).values()) < 0.003


def test_memory_behind_the_loss_is_about_half(device):
    if device.type != "cuda":
        pytest.skip("only a GPU tells what is allocated")
    model = randomize(get_peft_model(make("ast"), METHODS["ipet"]())).to(device).train()
    batch = batch_for("ast", device, batch_size=256)

    def behind_the_loss():
        model.zero_grad()
        before = torch.cuda.memory_allocated()
        loss = model(**batch).loss
        kept = torch.cuda.memory_allocated() - before
        loss.backward()
        return kept

    behind_the_loss()  # what libraries allocate once
    whole = behind_the_loss()
    save_activations_in_half(model)
    assert behind_the_loss() < 0.65 * whole
