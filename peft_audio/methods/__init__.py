"""One file a method: its configuration and its tuner. The names here are what a method outside of the package needs."""

from ..config import EncoderAdapterConfig
from ..tuner.adapter_parts import AdapterParts, Wiring
from ..tuner.model import EncoderTuner
from ..upstream.registration import register_method


__all__ = ["AdapterParts", "EncoderAdapterConfig", "EncoderTuner", "Wiring", "register_method"]
