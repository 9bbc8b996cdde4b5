"""Ways to damage an adapter's folder, and the ways to load from it."""

import json
from collections.abc import Callable
from typing import NamedTuple, Optional

import pytest
import torch
from peft import PeftModel
from refusals import CONFIG, INFINITY, PICKLE, WEIGHTS, Refusal, edit, param, two_adapters
from safetensors.torch import load_file, save_file
from tiny import make

from peft_audio import AutoPeftModelForAudioClassification


def editing(**fields):
    return lambda folder: edit(folder, **fields)


def dropping(name):
    def damage(folder):
        settings = json.loads((folder / CONFIG).read_text())
        del settings[name]
        (folder / CONFIG).write_text(json.dumps(settings))

    return damage


def writing(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def removing(name):
    return lambda folder: (folder / name).unlink()


def making_a_folder_of(name):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def flipping(position):
    def damage(folder):
        content = bytearray((folder / WEIGHTS).read_bytes())
        content[position] ^= 0xFF
        (folder / WEIGHTS).write_bytes(content)

    return damage


def tensors(part, change):
    """Damage that changes the first tensor whose name ends with `part`."""

    def damage(folder):
        weights = load_file(folder / WEIGHTS)
        name = next(name for name in weights if name.endswith(part))
        weights[name] = change(weights[name])
        save_file(weights, folder / WEIGHTS)

    return damage


def with_one(value):
    def change(tensor):
        tensor = tensor.double() if abs(value) < INFINITY else tensor
        tensor.view(-1)[3] = value
        return tensor

    return change


def pickled(make_content, dump=torch.save):
    def damage(folder):
        (folder / WEIGHTS).unlink()
        with open(folder / PICKLE, "wb") as stream:
            dump(make_content(folder), stream)

    return damage


WAYS = {
    "peft": lambda folder: (make("ast"), lambda model: PeftModel.from_pretrained(model, folder)),
    "beside": lambda folder: (two_adapters(), lambda model: model.load_adapter(folder, "second")),
    "plain": lambda folder: (make("ast"), lambda model: model.load_adapter(folder)),
    "auto": lambda folder: (None, lambda _: AutoPeftModelForAudioClassification.from_pretrained(folder)),
}
each_way = pytest.mark.parametrize("way", WAYS)


class Damage(NamedTuple):
    """What is done to an adapter's folder, and what is raised on loading: by this package, and else by PEFT."""

    what: str
    damage: Callable
    ours: Refusal
    peft: Optional[Refusal] = None
    plain: Optional[Refusal] = None
    beside: Optional[Refusal] = None

    def cases(self):
        peft = self.peft or self.ours
        by_way = {"peft": peft, "beside": self.beside or peft, "plain": self.plain or peft, "auto": self.ours}
        return [param(f"{self.what}-{way}", refusal, self.damage, way) for way, refusal in by_way.items()]


def each_damage(damages):
    return pytest.mark.parametrize("damage, way, refusal", [case for damage in damages for case in damage.cases()])
