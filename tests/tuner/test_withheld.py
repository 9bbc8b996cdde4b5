"""What PEFT offers for LoRA alone is refused with the reason, and the model stays as it was."""

import peft
import pytest
from peft import LoraConfig, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from refusals import left_alone
from tiny import BACKBONES, METHODS, make, randomize


WITHHELD = {
    "merge_and_unload": (lambda model, folder: model.merge_and_unload(), "cannot be merged .*unload"),
    "merge_adapter": (lambda model, folder: model.merge_adapter(), "cannot be merged"),
    "add_weighted_adapter": (
        lambda model, folder: model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "mean"),
        r"cannot be averaged into one.*set_adapter",
    ),
    "hotswap_adapter": (lambda model, folder: hotswap_adapter(model, folder, "default"), "only supports LORA"),
    "convert_to_lora": (lambda model, folder: peft.convert_to_lora(model, 4), "do not support LoRA conversion"),
    "LoRA beside": (
        lambda model, folder: model.add_adapter("lora", LoraConfig(target_modules=["q_proj"])),
        "different peft types",
    ),
}


@pytest.mark.parametrize("feature", WITHHELD)
@pytest.mark.parametrize("method", ["ipet", "time_freq_conv", "input_prompt"])
def test_withheld_features_are_refused(method, feature, tmp_path):
    model = randomize(get_peft_model(BACKBONES["ast"](), METHODS[method]()))
    model.add_adapter("second", METHODS[method]())
    model.save_pretrained(tmp_path)
    act, reason = WITHHELD[feature]
    with left_alone(model=model, folder=tmp_path), pytest.raises((ValueError, TypeError), match=reason):
        act(model, tmp_path)


def test_mixed_models_are_refused():
    base = make("ast")
    with left_alone(model=base), pytest.raises(ValueError, match="not compatible with the `PeftMixedModel`"):
        get_peft_model(base, METHODS["ipet"](), mixed=True)


def test_hotswapping_in_a_plain_model_is_refused(tmp_path):
    base = make("ast")
    base.add_adapter(METHODS["ipet"]())
    base.save_pretrained(tmp_path)
    with left_alone(model=base, folder=tmp_path), pytest.raises(ValueError, match="only supported for LoRA"):
        base.load_adapter(tmp_path, adapter_name="default", hotswap=True)
