"""The tables of PEFT and transformers that a tuner type is entered in.

Relied upon: PEFT's mappings from a `PeftType` to a configuration, a tuner and a prefix; how Python's `EnumMeta` keeps
the members of an enumeration; the table of `PeftModel` classes that transformers' pipelines accept; the value of
`target_modules` for which PEFT accepts that no module matches.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers.pipelines.base import SUPPORTED_PEFT_TASKS


NO_TARGET_MODULES: str = DUMMY_TARGET_MODULES
"""The value of `target_modules` with which PEFT accepts an adapter on no module at all."""


class MethodConfig(Protocol):
    """A configuration class that has the name of its method."""

    method_name: ClassVar[str]


def add_peft_type(name: str) -> PeftType:
    """Return the member `name` of `PeftType`; add it if it is not there yet.

    A real member is needed: transformers reads `peft_type.value`, and configurations are pickled and copied. Python
    has no public way to extend an enumeration, so this fills in what `EnumMeta` fills in for a declared member.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member: Any = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType._member_names_)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


def register_method(config_cls: type[MethodConfig], model_cls: type) -> None:
    """Register a tuner type with PEFT under `config_cls.method_name` (lower case).

    Registering the same name again replaces the earlier classes, so that reloading the package works.

    Args:
        config_cls: the configuration class.
        model_cls: the tuner class.
    """
    name = config_cls.method_name
    peft_type = add_peft_type(name.upper())
    mappings: tuple[dict[PeftType, Any], ...] = (
        PEFT_TYPE_TO_CONFIG_MAPPING,
        PEFT_TYPE_TO_PREFIX_MAPPING,
        PEFT_TYPE_TO_TUNER_MAPPING,
    )
    for mapping in mappings:
        mapping.pop(peft_type, None)
    register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)


def tuner_class(config: PeftConfig) -> Any:
    """Return the tuner class that is registered for the type of this configuration."""
    peft_type: Any = config.peft_type
    return PEFT_TYPE_TO_TUNER_MAPPING[peft_type]


def register_pipeline_model() -> None:
    """Let transformers' pipelines for audio classification and speech recognition accept a `PeftModel`."""
    for task in ("audio-classification", "automatic-speech-recognition"):
        accepted = SUPPORTED_PEFT_TASKS.setdefault(task, [])
        if PeftModel.__name__ not in accepted:
            accepted.append(PeftModel.__name__)
