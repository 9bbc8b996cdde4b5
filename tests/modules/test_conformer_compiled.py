"""The Conformer adapter's batch norm in compiled graphs: that of the module as written, padding and statistics included."""

import copy

import pytest
import torch

from peft_audio.modules import TokenLayout
from peft_audio.modules.conformer import ConformerBlock


@pytest.mark.parametrize("padded", [False, True])
def test_a_compiled_step_is_the_step(padded):
    torch.manual_seed(0)
    written = ConformerBlock(16, 8, 4, 1.0, 0.0, init_weights=False).train()
    other = copy.deepcopy(written)
    torch.compiler.reset()
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    mask = torch.ones(3, 10, dtype=torch.bool)
    if padded:
        mask[1, 6:] = mask[2, 3:] = False
    for seed in range(2):  # statistics go on from step to step
        tokens = torch.randn(3, 10, 16, generator=torch.Generator().manual_seed(seed))
        outputs = [module(tokens, TokenLayout((1, 10), mask)) for module in (written, compiled)]
        for output in outputs:
            output[mask].square().sum().backward()
        torch.testing.assert_close(outputs[1][mask], outputs[0][mask], rtol=1e-5, atol=1e-6)
    for (name, one), two in zip(written.named_parameters(), other.parameters()):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-5, msg=name)
    for one, two in zip(written.buffers(), other.buffers()):
        torch.testing.assert_close(two, one)
