"""The only place that touches PEFT's and transformers' tables: the enumeration and mappings of tuner types, the models
that pipelines take."""

from __future__ import annotations

from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method
from transformers.pipelines.base import SUPPORTED_PEFT_TASKS


def add_peft_type(name: str) -> PeftType:
    """Return the member `name` of `PeftType`, made if it is not there yet.

    A real member is needed: transformers reads `peft_type.value`, and configurations are pickled and copied. Python
    has no public way to extend an enumeration, so this fills in what `EnumMeta` fills in for a declared member.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType._member_names_)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


def register_method(config_cls: type, model_cls: type) -> None:
    """Make PEFT know a tuner type: `config_cls.method_name` (lower case), its configuration and its tuner.

    Registering the same name again replaces the earlier classes, so that reloading the package works.
    """
    name = config_cls.method_name
    peft_type = add_peft_type(name.upper())
    for mapping in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING):
        mapping.pop(peft_type, None)
    register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)


def register_pipeline_model() -> None:
    """Make transformers' audio classification pipeline know that it can run a `PeftModel`."""
    known = SUPPORTED_PEFT_TASKS.setdefault("audio-classification", [])
    if PeftModel.__name__ not in known:
        known.append(PeftModel.__name__)
