"""The fields that every configuration of this package shares."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Optional, Union

from peft.config import PeftConfig
from peft.utils import PeftType, TaskType

from ..upstream.registration import NO_TARGET_MODULES
from ..utils.atomic_files import written_together
from ..utils.validation import is_integer, require, require_boolean, require_choice
from .base_settings import normal_settings


EXACT = "^"
"""In front of a name in `modules_to_save`: the path of one module. PEFT takes all modules whose paths end in a name."""


STACKS = ("encoder", "decoder", "both")


@dataclass
class EncoderAdapterConfig(PeftConfig):
    """Base class of the configurations.

    Args:
        layers_to_transform (`int` or `list[int]`, *optional*): index or indices of the encoder layers to adapt. Negative
            indices count from the end. None adapts every layer. An empty list adapts none: only the head is trained
            (linear probe).
        stack (`str`): whose layers are adapted in an encoder-decoder: those of the "encoder", the "decoder" or "both", each
            those that `layers_to_transform` names.
        modules_to_save (`list[str]`, *optional*): modules to train and save besides the adapter. None stands for the
            base model's head, and what else the base model's checkpoint lacked; an empty list for no module.
        init_weights (`bool`): True starts from the method's own initial values. False draws every weight at random, so
            that the adapter changes the output from the start (for tests).
        base_settings (`dict`, *optional*): base-model settings: labels, input length and the like of the model that the
            adapter was trained on. The package fills them in.

    Raises:
        ValueError: if a field has a value that it does not allow.
    """

    layers_to_transform: Optional[Union[int, list[int]]] = field(
        default=None, metadata={"help": "Encoder layers to adapt; None for all, negative indices count from the end."}
    )
    stack: str = field(
        default="encoder",
        metadata={"help": "Whose layers are adapted in an encoder-decoder: 'encoder', 'decoder' or 'both'."},
    )
    modules_to_save: Optional[list[str]] = field(
        default=None,
        metadata={"help": "Modules trained and saved besides the adapter; None for the base model's head."},
    )
    init_weights: bool = field(
        default=True, metadata={"help": "False draws random weights that change the output, for tests."}
    )
    base_settings: Optional[dict[str, Any]] = field(
        default=None,
        metadata={"help": "Base-model settings that the adapter was trained with; filled in by the package."},
    )

    # Name of the method in lower case. The PEFT type and the prefix of the parameters' names are made of it.
    method_name: ClassVar[str]
    # For an adapter's model card: a description of the method, and BibTeX entries of the papers that it comes from.
    summary: ClassVar[str] = ""
    citations: ClassVar[tuple[str, ...]] = ()

    # The fields that the package fills in when the adapter is put on a model.
    filled_in: ClassVar[tuple[str, ...]] = ("modules_to_save", "base_settings", "layers_to_transform", "stack")

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: if a field has a value that it does not allow.
        """
        super().__post_init__()
        self.peft_type = PeftType[self.method_name.upper()]
        for name in ("layers_to_transform", "modules_to_save"):
            if isinstance(getattr(self, name), tuple):
                setattr(self, name, list(getattr(self, name)))  # what JSON gives back
        self._check_layers_to_transform()
        require_choice("stack", self.stack, STACKS)
        for name in ("base_model_name_or_path", "revision"):
            value = getattr(self, name)
            require(value is None or isinstance(value, (str, os.PathLike)), name, "None or a name", value)
        mapping = self.auto_mapping
        require(mapping is None or isinstance(mapping, dict), "auto_mapping", "None or a dictionary", mapping)
        if self.task_type not in (None, TaskType.FEATURE_EXTRACTION):
            # PEFT's model classes for tasks look for the heads of text models.
            require(False, "task_type", "None (the base model's own head is trained and saved)", str(self.task_type))
        names = self.modules_to_save
        is_list_of_names = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
        require(names is None or is_list_of_names, "modules_to_save", "None or a list of module names", names)
        require_boolean("init_weights", self.init_weights)
        require_boolean("inference_mode", self.inference_mode)
        self.base_settings = normal_settings(self.base_settings)

    def save_pretrained(self, save_directory: Union[str, os.PathLike], **kwargs: Any) -> None:
        """Save the configuration as `PeftConfig.save_pretrained` does; an earlier file is only replaced by a complete one.

        Args:
            save_directory: the folder; made if it does not exist.
            **kwargs: see `PeftConfig.save_pretrained`.

        Raises:
            ValueError: if `save_directory` is a file.
        """
        with written_together(Path(save_directory)) as folder:
            super().save_pretrained(str(folder), **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, as JSON has them: lists for tuples."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in super().to_dict().items()}

    def _check_layers_to_transform(self) -> None:
        layers: Any = self.layers_to_transform
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
        """What PEFT is told about the modules to adapt: a value that stands for none, or None.

        The table of backbones decides which modules are adapted. But if an adapter is on no layer at all, PEFT has to be
        told, or it takes the lack of a match for a mistake.
        """
        return NO_TARGET_MODULES if self.layers_to_transform == [] else None

    @property
    def saved_modules(self) -> list[str]:
        """The names in `modules_to_save` without the mark of those that are whole paths."""
        return [name.removeprefix(EXACT) for name in self.modules_to_save or ()]

    def choose_layers(self, layers: list[int], stack: str = "encoder") -> None:
        """Adapt the layers of the stack with these indices, and no others."""
        self.layers_to_transform, self.stack = layers, stack

    def selected_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the indices of the layers to adapt, in ascending order.

        Args:
            num_layers: number of layers of the encoder, or of the decoder.

        Raises:
            ValueError: if an index is out of range, or two name the same layer.
        """
        if self.layers_to_transform is None:
            return tuple(range(num_layers))
        layers = self.layers_to_transform
        layers = [layers] if isinstance(layers, int) else layers
        rule = f"between {-num_layers} and {num_layers - 1} for {num_layers} layers"
        require(all(-num_layers <= index < num_layers for index in layers), "layers_to_transform", rule, layers)
        selected = {index % num_layers for index in layers}
        require(len(selected) == len(layers), "layers_to_transform", "without indices that name one layer", layers)
        return tuple(sorted(selected))


def method_fields(config: EncoderAdapterConfig) -> list[str]:
    """Return the names of the fields that say what an adapter computes, and which modules it brings."""
    shared = [
        name
        for name in EncoderAdapterConfig.__dataclass_fields__
        if name not in ("layers_to_transform", "modules_to_save", "stack")
    ]
    return [name for name in config.__dataclass_fields__ if name not in shared]
