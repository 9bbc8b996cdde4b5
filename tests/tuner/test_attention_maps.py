"""Attention maps: a row for each token, a column for each prompt and token, on every backbone."""

import pytest
import torch
from peft import get_peft_model
from tiny import BACKBONES, METHODS, NUM_LAYERS, each_backbone, make_inputs, randomize


@each_backbone
@pytest.mark.parametrize("method", ["embedding_prompt", "ipet"])
@torch.no_grad()
def test_maps_have_rows_for_tokens_alone(backbone, method):
    base = BACKBONES[backbone](attn_implementation="eager")
    inputs = make_inputs(backbone)
    plain = base(**inputs, output_attentions=True).attentions
    model = randomize(get_peft_model(base, METHODS[method]())).eval()
    maps = model(**inputs, output_attentions=True).attentions
    assert len(maps) == len(plain) == NUM_LAYERS
    for with_prompts, without in zip(maps, plain):
        batch, heads, rows, columns = without.shape
        assert with_prompts.shape == (batch, heads, rows, columns + 3)
        torch.testing.assert_close(with_prompts.sum(-1), torch.ones(batch, heads, rows))
