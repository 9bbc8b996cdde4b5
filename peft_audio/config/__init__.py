"""Configurations: the fields that all methods share, and the rules for what a checkpoint says of its base model."""

from .base_settings import normal_labels, normal_settings
from .encoder_adapter import EXACT, EncoderAdapterConfig, method_fields
from .filling import filled_in, fresh_config


__all__ = [
    "EXACT",
    "EncoderAdapterConfig",
    "filled_in",
    "fresh_config",
    "method_fields",
    "normal_labels",
    "normal_settings",
]
