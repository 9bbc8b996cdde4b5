"""`save_pretrained(folder, state_dict=...)` with the names that wrappers and other tools give."""

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from tiny import METHODS, make, randomize


each_kind = pytest.mark.parametrize("backbone, bare", [("ast", False), ("ast", True), ("wav2vec2", False)])
each_method = pytest.mark.parametrize("method", ["ipet", "input_prompt", "time_freq_conv"])
PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.", "student.audio.")


@each_kind
@each_method
def test_a_state_dict_may_have_a_prefix(backbone, bare, method, tmp_path):
    model = randomize(get_peft_model(make(backbone, bare=bare), METHODS[method]()))
    expected = get_peft_model_state_dict(model)
    own = model.state_dict()
    with_names = [{prefix + name: tensor for name, tensor in own.items()} for prefix in PREFIXES]
    with_names += [own, model.get_base_model().state_dict()]
    for number, state_dict in enumerate(with_names):
        model.save_pretrained(tmp_path / str(number), state_dict=state_dict)
        saved = load_file(tmp_path / str(number) / "adapter_model.safetensors")
        assert saved.keys() == expected.keys()
        assert all(torch.equal(saved[name], tensor) for name, tensor in expected.items())
    PeftModel.from_pretrained(make(backbone, bare=bare), tmp_path / "0")


@each_kind
def test_a_plain_models_state_dict_may_have_a_prefix(backbone, bare, tmp_path):
    model = make(backbone, bare=bare)
    model.add_adapter(METHODS["ipet"]())
    state_dict = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state_dict)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == len(get_peft_model_state_dict(model))


@each_kind
def test_a_state_dict_of_something_else_writes_nothing(backbone, bare, tmp_path):
    model = get_peft_model(make(backbone, bare=bare), METHODS["ipet"]())
    model.save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="`state_dict` has no tensors by the names .*its own are conv.weight"):
        model.save_pretrained(tmp_path, state_dict={"conv.weight": torch.ones(1)})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_state_dict_lacks_is_told(tmp_path):
    model = get_peft_model(make("ast"), METHODS["ipet"]())
    state_dict = {name: tensor for name, tensor in model.state_dict().items() if "layers.1" not in name}
    with pytest.warns(UserWarning, match=r"no tensors by the names .*layers\.1.*cannot be loaded as it is"):
        model.save_pretrained(tmp_path, state_dict=state_dict)
