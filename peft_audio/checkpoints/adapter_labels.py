"""The labels of the adapters on a model: its configuration names those of the adapter whose head is active.

Pipelines and users read the labels of the model's configuration. An adapter with a head of its own has its own labels,
and they are saved with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Optional

from torch import nn

from ..backbones.spec import EncoderSpec
from ..backbones.table import resolve
from ..config import EncoderAdapterConfig, normal_labels
from .base_settings import LABELS, PROBLEM_TYPE, read_settings, set_labels


ATTRIBUTE = "_peft_audio_labels"  # of the model that the object belongs to


class AdapterLabels:
    """Keeps a model's labels those of its active adapter.

    Args:
        model: the base model.
    """

    def __init__(self, model: Any) -> None:
        self.model_config = model.config
        self.head = set(resolve(model).head)
        self.configs: dict[str, Any] = {}  # by adapter name
        self.shown: Any = None  # a configuration
        self.own = self.seen = self._read()

    @staticmethod
    def of(model: nn.Module) -> AdapterLabels:
        """Return the object that belongs to `model`, made when it is first asked for."""
        if ATTRIBUTE not in vars(model):
            vars(model)[ATTRIBUTE] = AdapterLabels(model)
        return vars(model)[ATTRIBUTE]

    def activate(self, adapter_names: Iterable[str]) -> None:
        """Give the model the labels of that one of these adapters which has a head, its own if there is none."""
        self.take_changes()
        active = [self.configs[name] for name in adapter_names if name in self.configs]
        self.shown = next((config for config in active if self._has_labels(config)), None)
        settings = self.own if self.shown is None else self.shown.base_settings
        if settings is not None and settings.get(LABELS) != (self.seen or {}).get(LABELS):
            set_labels(self.model_config, settings)
        self.seen = self._read()

    def replace(self, adapter_name: str, settings: dict[str, Any]) -> None:
        """Give an adapter, whose weights were replaced, the labels of base-model settings."""
        self.take_changes()
        config = self.configs.get(adapter_name)
        if config is None or not settings.get(LABELS):
            return
        labels = {name: settings[name] for name in (LABELS, PROBLEM_TYPE) if name in settings}
        config.base_settings = {**(config.base_settings or {}), **labels}
        if self.shown is config:
            set_labels(self.model_config, config.base_settings)
            self.seen = self._read()

    def take_changes(self) -> None:
        """Let labels that were changed by hand, in the model's configuration, be those of the active adapter."""
        now = self._read()
        if now is None or now == self.seen:
            return
        self.seen = now
        if self.shown is None:
            self.own = now
        else:
            self.shown.base_settings = {**(self.shown.base_settings or {}), **now}

    def _has_labels(self, config: EncoderAdapterConfig) -> bool:
        has_head = bool(self.head) and self.head <= set(config.saved_modules)
        return has_head and bool((config.base_settings or {}).get(LABELS))

    def _read(self) -> Optional[dict[str, Any]]:
        labels = getattr(self.model_config, LABELS, None)
        if not labels:
            return None
        try:
            labels = normal_labels(labels, type(self.model_config).__name__)
        except ValueError as error:  # weights are saved all the same
            warnings.warn(f"{error} They are left out of what the adapter remembers.", stacklevel=2)
            return None
        return {LABELS: labels, PROBLEM_TYPE: getattr(self.model_config, PROBLEM_TYPE, None)}


def remember_settings(config: EncoderAdapterConfig, model: Any, spec: EncoderSpec) -> None:
    """Write the base-model settings of `model` into an adapter's configuration.

    The model may have several adapters, each with labels of its own: those that the model has now are of the active one.

    Args:
        config: the adapter's configuration; its `base_settings` are replaced.
        model: the base model.
        spec: the description of its architecture.
    """
    labels = AdapterLabels.of(model)
    labels.take_changes()
    own = config.base_settings or {}
    settings = read_settings(model, spec, with_labels=False)
    of_labels = own if own.get(LABELS) else labels.seen or {}
    settings |= {name: of_labels[name] for name in (LABELS, PROBLEM_TYPE) if name in of_labels}
    config.base_settings = settings
