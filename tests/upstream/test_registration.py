"""The tuner types as PEFT sees them."""

import copy
import importlib
import pickle

import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType
from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES

import peft_audio
from peft_audio.methods import ipet
from peft_audio.upstream.registration import add_peft_type


NAMES = ["EMBEDDING_PROMPT", "PARALLEL_MLP_ADAPTER", "IPET"]


@pytest.mark.parametrize("name", NAMES)
def test_types_are_real_members(name):
    member = PeftType[name]
    assert member is PeftType(name) is getattr(PeftType, name) and member in list(PeftType)
    assert (member.name, member.value) == (name, name) and member == name
    assert pickle.loads(pickle.dumps(member)) is member and copy.deepcopy(member) is member
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == name.lower() + "_"
    assert PEFT_TYPE_TO_TUNER_MAPPING[member].prefix == name.lower() + "_"
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member]().peft_type is member


def test_registering_twice_is_harmless(monkeypatch):
    members = list(PeftType)
    for name in ("IPETConfig", "IPETModel"):  # pickle finds classes by their names: the first ones come back
        monkeypatch.setattr(ipet, name, getattr(ipet, name))
    add_peft_type("IPET")
    importlib.reload(ipet)
    assert list(PeftType) == members
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.IPET] is ipet.IPETConfig
    ipet.register_method(peft_audio.IPETConfig, peft_audio.IPETModel)


def test_public_names():
    for name in peft_audio.__all__:
        assert getattr(peft_audio, name).__doc__, name
    audio_types = set(MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES)
    assert audio_types < set(peft_audio.supported_backbones())
