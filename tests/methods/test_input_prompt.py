"""Input prompts: values on the border of what the model is given."""

import pytest
import torch
from peft import get_peft_model
from tiny import BACKBONES, make, make_inputs, make_padded_inputs, randomize

from peft_audio import EncoderSpec, InputPromptConfig, register_backbone
from peft_audio.backbones.table import BACKBONES as TABLE
from peft_audio.backbones.table import resolve
from peft_audio.modules import InputPrompt


def prompted(backbone, size=3):
    model = randomize(get_peft_model(BACKBONES[backbone](), InputPromptConfig(prompt_size=size, modules_to_save=[])))
    prompt = next(module for module in model.modules() if isinstance(module, InputPrompt))
    return model.eval(), prompt


def frame(prompt, height, width):
    """The border by hand: two ends of whole rows, two sides between them."""
    size, values = prompt.size, torch.zeros(*prompt.ends.shape[1:-2], height, width)
    values[..., :size, :], values[..., -size:, :] = prompt.ends
    values[..., size:-size, :size], values[..., size:-size, -size:] = prompt.sides
    return values


@pytest.mark.parametrize(
    "backbone, shape", [("ast", (46, 36)), ("whisper", (12, 28)), ("vit", (24, 24)), ("deit", (24, 24))]
)
@torch.no_grad()
def test_a_frame_is_added_to_inputs_of_fixed_size(backbone, shape):
    model, prompt = prompted(backbone)
    ((name, inputs),) = make_inputs(backbone).items()
    expected = BACKBONES[backbone]()(**{name: inputs + frame(prompt, *shape)}).logits
    torch.testing.assert_close(model(**{name: inputs}).logits, expected, atol=1e-6, rtol=1e-6)
    assert prompt.ends.abs().min() > 0 and prompt.sides.abs().min() > 0


@pytest.mark.parametrize("backbone", ["wav2vec2", "hubert-stable", "wav2vec2-bert", "sew-d"])
@torch.no_grad()
def test_the_ends_of_every_clip_change_where_the_length_varies(backbone):
    model, prompt = prompted(backbone)
    base = BACKBONES[backbone]()
    batch, (whole, short) = make_padded_inputs(backbone)
    (name,) = set(batch) - {"attention_mask"}
    changed = dict(batch, **{name: batch[name].clone()})
    for index, length in enumerate((whole[name].shape[1], short[name].shape[1])):
        changed[name][index, :3] += prompt.ends[0]
        changed[name][index, length - 3 : length] += prompt.ends[1]
    torch.testing.assert_close(model(**batch).logits, base(**changed).logits, atol=1e-6, rtol=1e-6)


def test_clips_shorter_than_the_prompt_get_what_fits():
    prompt = InputPrompt((None,), 4, init_weights=False)
    changed = prompt(torch.zeros(3, 10), lengths=torch.tensor([10, 5, 2]))
    first, last = prompt.ends
    assert torch.equal(changed[0], torch.cat([first, torch.zeros(2), last]))
    assert torch.equal(changed[1, :5], torch.cat([first, torch.zeros(1)]) + torch.cat([torch.zeros(1), last]))
    assert torch.equal(changed[2, :2], first[:2] + last[2:])
    assert not changed[1, 5:].any() and not changed[2, 2:].any()


def test_inputs_of_another_size_are_refused():
    prompt = InputPrompt((46, 36), 3)
    with pytest.raises(ValueError, match=r"shape \(batch, 46, 36\), got \(2, 40, 36\)"):
        prompt(torch.zeros(2, 40, 36))


def test_several_active_prompts_add_up_and_attributes_of_the_module_stay_at_hand():
    model, _ = prompted("whisper")
    model.add_adapter("second", InputPromptConfig(prompt_size=2, modules_to_save=[], init_weights=False))
    model.base_model.set_adapter(["default", "second"])
    prompts = [module for module in model.modules() if isinstance(module, InputPrompt)]
    inputs = make_inputs("whisper")["input_features"]
    with torch.no_grad():
        changed = inputs + sum(frame(prompt, 12, 28) for prompt in prompts)
        expected = make("whisper")(input_features=changed).logits
        torch.testing.assert_close(model(input_features=inputs).logits, expected, atol=1e-6, rtol=1e-6)
    wrapped = model.get_submodule("base_model.model." + resolve(model.get_base_model()).input_name)
    assert wrapped.stride == (1,) and wrapped.in_channels == 12
    with pytest.raises(AttributeError, match="no_such_thing"):
        assert wrapped.no_such_thing


def test_a_row_without_an_input_says_what_is_missing():
    model = make("ast")
    model.config.model_type = "inputless"
    register_backbone("inputless", EncoderSpec("layers", "attention", "layernorm_after", "mlp"))
    try:
        with pytest.raises(ValueError, match=r"the input of inputless enters.*EncoderSpec\(\.\.\., input=path"):
            get_peft_model(model, InputPromptConfig())
    finally:
        del TABLE["inputless"]
