"""Attention masks in all the forms that transformers has for them."""

import pytest
import torch
from peft import get_peft_model
from tiny import BACKBONES, METHODS, WITH_PADDING, make_padded_inputs, randomize
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from peft_audio.tuner.masks import grow_mask, real_tokens


PADDED = torch.tensor([[True, True, False], [True, True, True]])
FORMS = {
    "keys": PADDED.long(),
    "boolean": PADDED[:, None, None].expand(2, 1, 3, 3),
    "additive": torch.zeros(2, 1, 3, 3).masked_fill(~PADDED[:, None, None], torch.finfo(torch.float32).min),
    "integer": PADDED[:, None, None].long(),
}


@pytest.mark.parametrize("form", FORMS)
def test_real_tokens(form):
    assert torch.equal(real_tokens(FORMS[form], 2), PADDED)
    assert real_tokens(None, 2) is None


def test_one_mask_for_a_whole_batch():
    assert torch.equal(real_tokens(torch.zeros(1, 1, 3, 3), 4), torch.ones(4, 3, dtype=torch.bool))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("grow_queries", [False, True])
def test_everyone_attends_to_new_tokens_in_front(form, grow_queries):
    grown = grow_mask(FORMS[form], 2, grow_queries)
    assert grown.dtype == FORMS[form].dtype
    expected = torch.nn.functional.pad(PADDED, (2, 0), value=True)
    # The rows of the new tokens attend everywhere, what they give is thrown away.
    assert torch.equal(real_tokens(grown[:, :, -1:] if grown.dim() == 4 else grown, 2), expected)
    if form in ("boolean", "additive"):
        assert grown.shape == (2, 1, 5 if grow_queries else 3, 5)
        attends = grown == (0 if form == "additive" else 1)
        assert attends[..., :2].all() and torch.equal(attends[:, 0, -1], expected)


@pytest.mark.parametrize("mask", [torch.zeros(1, 2, 2), "block mask"])
def test_other_forms_are_refused(mask):
    for use in (lambda mask: real_tokens(mask, 1), lambda mask: grow_mask(mask, 1, grow_queries=False)):
        with pytest.raises(ValueError, match="Load the model with attn_implementation='sdpa' or 'eager'"):
            use(mask)


def flash_like(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention that takes masks as flash attention does: (batch, keys), none without padding."""
    if attention_mask is not None:
        assert attention_mask.shape == (key.shape[0], key.shape[2])
        attention_mask = attention_mask[:, None, None].bool()
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling)
    return output.transpose(1, 2), None


@pytest.fixture
def flash_attention():
    AttentionInterface.register("keys_only", flash_like)
    AttentionMaskInterface.register("keys_only", flash_attention_mask)
    return "keys_only"


# Attention with position biases has no flash form, and some types build their attention themselves.
FLASH = [
    name
    for name in WITH_PADDING
    if name.split("-")[0] in ("hubert", "unispeech") or name in ("wav2vec2", "wav2vec2-stable")
]


@pytest.mark.parametrize("backbone", FLASH)
@pytest.mark.parametrize("method", ["ipet", "joint", "time_freq_conv", "conformer"])
@torch.no_grad()
def test_flash_style_masks(backbone, method, flash_attention):
    inputs = make_padded_inputs(backbone)[0]
    models = [
        randomize(get_peft_model(BACKBONES[backbone](attn_implementation=implementation), METHODS[method]())).eval()
        for implementation in (flash_attention, "sdpa")
    ]
    flash, expected = (model(**inputs).logits for model in models)
    torch.testing.assert_close(flash, expected, atol=1e-5, rtol=1e-5)
