"""What every adapter module promises, and what a layer does with one that promises nothing."""

import pytest
import torch
from peft import get_peft_model
from prompted import layers_of
from tiny import METHODS, make, make_inputs, randomize, same
from torch import nn

from peft_audio.modules import AdapterModule, Bottleneck, ConformerBlock, TokenLayout
from peft_audio.modules.adapter_module import reads_neighbors, special_tokens_stand_alone


GRID, SPECIAL, WIDTH = (3, 4), 2, 16
MODULES = {
    "bottleneck": lambda: Bottleneck(WIDTH, 4, nn.GELU(), init_weights=False, dropout=0.5),
    "convolutions": lambda: Bottleneck(WIDTH, 4, nn.GELU(), kernel=(3, 3), init_weights=False, dropout=0.5),
    "conformer": lambda: ConformerBlock(WIDTH, 4, kernel=4, init_weights=False, dropout=0.5),
}
each_module = pytest.mark.parametrize("kind", MODULES)


def tokens(dtype=torch.float32, batch_size=2):
    torch.manual_seed(3)
    return torch.randn(batch_size, SPECIAL + GRID[0] * GRID[1], WIDTH).to(dtype)


def padding():
    mask = torch.ones(2, SPECIAL + GRID[0] * GRID[1], dtype=torch.bool)
    mask[1, -5:] = False
    return mask


@torch.no_grad()
def output(module, hidden_states, mask=None):
    return module(hidden_states, TokenLayout(GRID, mask))


@each_module
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("own_dtype", [torch.float32, torch.bfloat16])
def test_shape_and_dtype_are_those_of_the_input(kind, dtype, own_dtype):
    module = MODULES[kind]().to(own_dtype).eval()
    result = output(module, tokens(dtype))
    assert result.shape == tokens().shape and result.dtype == dtype


@each_module
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_dtype_is_autocasts(kind, dtype):
    module = MODULES[kind]().eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert output(module, tokens(dtype)).dtype == torch.bfloat16


@each_module
def test_a_module_that_mixes_nothing_says_so_and_only_then(kind):
    """Changing one token changes no other, or the module says that it reads neighbors."""
    module, before = MODULES[kind]().eval(), tokens()
    changed = before.clone()
    changed[:, 5] += torch.randn(WIDTH)
    difference = (output(module, changed) - output(module, before)).abs().amax(-1)
    others = torch.arange(before.shape[1]) != 5
    assert reads_neighbors(module) == bool(difference[:, others].max() > 1e-6)


@each_module
def test_special_tokens_stand_alone_where_the_module_says_so_and_only_there(kind):
    module, hidden_states = MODULES[kind]().eval(), tokens()
    whole = output(module, hidden_states)[:, :SPECIAL]
    with torch.no_grad():
        alone = module(hidden_states[:, :SPECIAL], TokenLayout((1, 0)))
    assert special_tokens_stand_alone(module) == torch.allclose(alone, whole, atol=1e-6)


@each_module
def test_samples_and_padding_are_never_read(kind):
    module, before, mask = MODULES[kind]().eval(), tokens(), padding()
    changed = before.clone()
    changed[1, ~mask[1]] += 1
    result, again = output(module, before, mask), output(module, changed, mask)
    assert torch.allclose(result[mask], again[mask], atol=1e-6)
    changed = before.clone()
    changed[1] += 1
    assert torch.allclose(output(module, changed, mask)[0], result[0], atol=1e-6)


@each_module
def test_dropout_acts_in_training_mode_only(kind):
    module, hidden_states = MODULES[kind](), tokens()
    results = [output(module.train(mode), hidden_states) for mode in (True, True, False, False)]
    assert not torch.equal(results[0], results[1]) and torch.equal(results[2], results[3])


# ---- modules that say nothing ----------------------------------------------------------------------------------------


class Silent(nn.Module):
    """The mean over all tokens, from a module that keeps no contract."""

    def forward(self, hidden_states, layout=None):
        return hidden_states.mean(1, keepdim=True).expand_as(hidden_states)


class SilentAdapter(AdapterModule):
    def forward(self, hidden_states, layout=None):
        return hidden_states.mean(1, keepdim=True).expand_as(hidden_states)


def with_module(adapter, backbone="ast"):
    """A model whose adapters beside the feed-forward block are replaced by this one."""
    model = randomize(get_peft_model(make(backbone), METHODS["parallel_mlp"]())).eval()
    for layer in layers_of(model):
        layer.part("mlp_adapter")["default"] = adapter
    return model


@pytest.mark.parametrize("adapter_cls", [Silent, SilentAdapter])
@pytest.mark.parametrize("backbone", ["ast", "vit", "deit"])
@torch.no_grad()
def test_a_module_that_says_nothing_is_right_with_and_without_hidden_states(adapter_cls, backbone):
    adapter = adapter_cls()
    assert reads_neighbors(adapter) and not special_tokens_stand_alone(adapter)
    model, inputs = with_module(adapter, backbone), make_inputs(backbone)
    expected = model(**inputs, output_hidden_states=True).logits
    assert same(model(**inputs).logits, expected)


def test_an_adapter_module_without_forward_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="AdapterModule must implement forward"):
        AdapterModule()(tokens())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda states: states[:, 1:], r"must return the shape that it is given, \(2, 14, 32\).*got \(2, 13, 32\)"),
        (lambda states: states.double(), "must return the dtype that it is given, torch.float32, got torch.float64"),
    ],
)
def test_a_result_that_breaks_the_contract_is_refused(change, message):
    class Broken(AdapterModule):
        def forward(self, hidden_states, layout=None):
            return change(hidden_states)

    with pytest.raises(ValueError, match=f"adapter module Broken {message}"):
        with_module(Broken())(**make_inputs("ast"))


def test_convolutions_ask_for_the_layout():
    with pytest.raises(ValueError, match="`layout` must be a TokenLayout"):
        MODULES["convolutions"]()(tokens())
