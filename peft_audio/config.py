"""The fields that every configuration of this package shares."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Optional, Union

from peft.config import PeftConfig
from peft.utils import PeftType, TaskType
from peft.utils.constants import DUMMY_TARGET_MODULES

from .utils.atomic_files import written_together
from .utils.validation import is_integer, require, require_boolean


@dataclass
class EncoderAdapterConfig(PeftConfig):
    """Base class of the configurations.

    Args:
        layers_to_transform (`int` or `list[int]`, *optional*): index or indices of the encoder layers to adapt, negative
            ones from the end. None adapts all of them; an empty list none, which leaves a trained head (linear probe).
        modules_to_save (`list[str]`, *optional*): modules to train and save beside the adapter. None takes the
            backbone's own classification head; an empty list nothing.
        init_weights (`bool`): start from the method's own initial values. False draws every weight at random, so that
            the adapter changes the output from the start (for tests).
        base_settings (`dict`, *optional*): labels, input length and the like of the model that the adapter was trained
            on. Filled in by the package.

    Raises:
        ValueError: when made with a value that breaks a rule.
    """

    layers_to_transform: Optional[Union[int, list[int]]] = field(
        default=None, metadata={"help": "Encoder layers to adapt; None for all, negative indices count from the end."}
    )
    modules_to_save: Optional[list[str]] = field(
        default=None, metadata={"help": "Modules trained and saved beside the adapter; None for the backbone's head."}
    )
    init_weights: bool = field(
        default=True, metadata={"help": "False draws random weights that change the output, for tests."}
    )
    base_settings: Optional[dict[str, Any]] = field(
        default=None, metadata={"help": "Settings of the model that the adapter was trained on; filled in on use."}
    )

    # Lower-case name of the method; PEFT's type and the prefix of parameter names follow from it.
    method_name: ClassVar[str]
    # What the card of an adapter says of the method, and BibTeX entries of the papers it comes from.
    summary: ClassVar[str] = ""
    citations: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType[self.method_name.upper()]
        for name in ("layers_to_transform", "modules_to_save"):
            if isinstance(getattr(self, name), tuple):
                setattr(self, name, list(getattr(self, name)))  # what JSON gives back
        self._check_layers_to_transform()
        if self.task_type not in (None, TaskType.FEATURE_EXTRACTION):
            # PEFT's model classes for tasks look for the heads of text models.
            require(False, "task_type", "None (the backbone's own head is trained and saved)", str(self.task_type))
        names = self.modules_to_save
        is_list_of_names = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
        require(names is None or is_list_of_names, "modules_to_save", "None or a list of module names", names)
        require_boolean("init_weights", self.init_weights)
        require_boolean("inference_mode", self.inference_mode)
        settings = self.base_settings
        require(settings is None or isinstance(settings, dict), "base_settings", "None or a dictionary", settings)
        labels = (settings or {}).get("id2label") or {}
        has_indices = isinstance(labels, dict) and all(str(index).isdigit() for index in labels)
        require(has_indices, "base_settings", "without labels, or with labels by index", settings)

    def save_pretrained(self, save_directory: Union[str, os.PathLike], **kwargs: Any) -> None:
        """See `PeftConfig.save_pretrained`; a file that was there is replaced by a whole one only."""
        with written_together(Path(save_directory)) as folder:
            super().save_pretrained(str(folder), **kwargs)

    def _check_layers_to_transform(self) -> None:
        layers = self.layers_to_transform
        rule = "None, an integer or a list of different integers"
        if layers is None or is_integer(layers):
            return
        is_list = isinstance(layers, list) and all(is_integer(index) for index in layers)
        require(is_list and len(set(layers)) == len(layers), "layers_to_transform", rule, layers)

    @property
    def labels(self) -> list[str]:
        """The names of the labels that the adapter was trained on, in the order of its head's outputs; may be empty."""
        labels = (self.base_settings or {}).get("id2label") or {}
        return [labels[index] for index in sorted(labels, key=int)]

    @property
    def target_modules(self) -> Optional[str]:
        # PEFT asks every configuration for its target modules. Here the backbone's table decides; only "no layer at
        # all" has to be said, or PEFT takes the lack of a match for a mistake.
        return DUMMY_TARGET_MODULES if self.layers_to_transform == [] else None

    def selected_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the indices of the layers to adapt, ascending, of an encoder with `num_layers` layers.

        Raises:
            ValueError: if an index is out of range.
        """
        layers = self.layers_to_transform
        if layers is None:
            return tuple(range(num_layers))
        layers = [layers] if is_integer(layers) else layers
        rule = f"between {-num_layers} and {num_layers - 1} on an encoder of {num_layers} layers"
        require(all(-num_layers <= index < num_layers for index in layers), "layers_to_transform", rule, layers)
        selected = {index % num_layers for index in layers}
        require(len(selected) == len(layers), "layers_to_transform", "free of indices that name one layer", layers)
        return tuple(sorted(selected))
