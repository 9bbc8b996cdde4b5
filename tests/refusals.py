"""Tables of wrong input: what is done, what is raised, and what must be left as it was."""

import json
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple, Union

import pytest
import torch
from peft import get_peft_model
from tiny import METHODS, make, make_inputs, randomize
from transformers import BertConfig, BertForSequenceClassification


CONFIG, WEIGHTS, PICKLE, CARD = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "README.md"
NAN, INFINITY = float("nan"), float("inf")


class Refusal(NamedTuple):
    """What is raised: the type, and a regular expression for the text."""

    error: Union[type[Exception], tuple[type[Exception], ...]]
    message: str


class Row(NamedTuple):
    what: str
    act: Callable
    refusal: Refusal


def row(what, act, error, message):
    return Row(what, act, Refusal(error, message))


def param(name, refusal, *values):
    return pytest.param(*values, refusal, id=name)


def each_row(rows):
    return pytest.mark.parametrize("act, refusal", [param(row.what, row.refusal, row.act) for row in rows])


def refused(refusal):
    return pytest.raises(refusal.error, match=f"(?s){refusal.message}")


# ---- what must not change --------------------------------------------------------------------------------------------


def files_in(folder):
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def state_of(model):
    modules = list(model.named_modules())
    return {
        "classes": [(name, type(module)) for name, module in modules],
        "hooks": [(name, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in modules],
        "modes": [module.training for _, module in modules],
        "tensors": {name: bytes_of(tensor) for name, tensor in model.state_dict().items()},
        "trainable": [parameter.requires_grad for parameter in model.parameters()],
        "adapters": {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()},
        "configuration": model.config.to_dict() if hasattr(model, "config") else None,
    }


def bytes_of(tensor):
    return tensor.detach().numpy().tobytes()


@contextmanager
def left_alone(*, model=None, folder=None, but=()):
    """Within, the files in the folder stay as they are, and the model does, but for some of what `state_of` tells."""
    state = None if model is None else state_of(model)
    files = None if folder is None else files_in(folder)
    yield
    if folder is not None:
        assert files_in(folder) == files
    if model is not None:
        after = state_of(model)
        assert [name for name in state if after[name] != state[name] and name not in but] == []


@torch.no_grad()
def logits(model, backbone="ast", **inputs):
    return model(**(inputs or make_inputs(backbone))).logits


def bert():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=30, **sizes))


def two_adapters(config=None, **options):
    config = config or METHODS["ipet"]
    model = get_peft_model(make("ast"), config(**options), adapter_name="a")
    model.add_adapter("b", config(**options))
    return randomize(model).eval()


class Intruder:
    """Creates a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return create, (str(self.file),)


def create(name):
    with open(name, "w"):
        pass


def trained(backbone, folder):
    make(backbone).save_pretrained(folder / "base")
    base = type(make(backbone)).from_pretrained(folder / "base")
    randomize(get_peft_model(base, METHODS["ipet"]())).eval().save_pretrained(folder / "adapter")


def edit(folder, **fields):
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**settings, **fields}))
