"""The tuner: puts a method's adapters on a backbone, takes them off, and names their tensors in checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Generic, NamedTuple, Optional, TypeVar, Union

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from typing_extensions import Self

from ..backbones.relative_positions import install_position_detach, remove_position_detach
from ..backbones.spec import Backbone, LayerModules
from ..backbones.table import locate, resolve
from ..checkpoints.adapter_labels import AdapterLabels, remember_settings
from ..checkpoints.base_settings import check_settings, read_settings, with_labels_that_fit
from ..checkpoints.tensors import check_saved, check_tensors
from ..config import EncoderAdapterConfig, filled_in, fresh_config
from ..heads.weighted_layer_sum import MODULE_NAME, LayerWeights, install_layer_weights, remove_layer_weights
from ..upstream.peft_modules import adapters_of, trained_modules
from ..upstream.peft_state_dict import PEFT_MODEL_PREFIX, may_sizes_differ, tensors_of_layers
from ..upstream.transformers_models import freeze_feature_encoder
from ..utils.forward_pass import ForwardPass
from .adapter_checks import check_adapter_name, check_alone, check_in_memory, check_size
from .adapter_parts import AT_THE_END, AdapterParts
from .encoder_layer import EncoderTunerLayer
from .from_state_dict import DECODER_LAYERS, LAYERS, is_in_decoder, take_layers
from .mixed_batch import mixed_batch
from .model_calls import install_model_calls, remove_model_calls
from .read_tokens import install_read_tokens, remove_read_tokens
from .row_check import check_row_once
from .saved_modules import modules_to_save
from .stacks import adapted_stacks, check_parts, names_of_layers, stack_of
from .trained_modules import install_trained_modules, train_in_float32, train_marked
from .training_setup import install_training_setup, remove_training_setup
from .tuner_layer import HookedTunerLayer, base_layer_of, keep_frozen_statistics


ConfigT = TypeVar("ConfigT", bound=EncoderAdapterConfig)


class Injection(NamedTuple):
    """What is known while an adapter is being put on a model.

    Attributes:
        backbone: the model with its places found.
        targets: paths of the modules that get a tuner layer.
    """

    backbone: Backbone
    targets: frozenset[str]


class EncoderTuner(BaseTuner, Generic[ConfigT]):
    """Base class of the methods. A method gives its `prefix` and says in `build_parts` what a layer gets.

    Args:
        model: a model of a supported backbone type.
        peft_config: the configuration, or configurations by adapter name.
        adapter_name: name of the adapter.
        low_cpu_mem_usage: make the adapter's tensors on the meta device, to be replaced by loaded ones.

    Raises:
        ValueError: if the configuration does not fit the model; the model is unchanged then.
    """

    tuner_layer_cls: type[HookedTunerLayer] = EncoderTunerLayer
    target_module_mapping: dict[str, list[str]] = {}
    _is_frozen = False  # whether nothing was to be trained when the adapters were disabled
    _injection: Optional[Injection] = None  # while an adapter is being put on

    def build_parts(self, config: ConfigT, backbone: Backbone, modules: LayerModules) -> AdapterParts:
        """Return fresh modules for one encoder layer, whose own are `modules`.

        Raises:
            ValueError: if the configuration does not fit the backbone.
        """
        return AdapterParts()

    def target_names(self, config: ConfigT, backbone: Backbone) -> list[str]:
        """Return the paths of the modules that get a tuner layer: the layers that `config` selects.

        Raises:
            ValueError: if the configuration does not fit the backbone.
        """
        return names_of_layers(config, backbone)

    def add_to(self, target: nn.Module, config: ConfigT, adapter_name: str, backbone: Backbone) -> nn.Module:
        """Return `target` with the adapter on it, in a tuner layer."""
        modules = locate(target, backbone.spec)
        if not isinstance(target, EncoderTunerLayer):
            target = EncoderTunerLayer(target, modules, backbone, self.prefix, ForwardPass.of(self.model))
        parts = self.build_parts(config, backbone, modules)
        target.update_layer(adapter_name, parts, config.inference_mode)
        return target

    def check_fit(self, config: ConfigT, backbone: Backbone) -> None:
        """Raise ValueError if the configuration does not fit the backbone. Changes nothing."""
        num_layers = len(self.target_names(config, backbone))
        for stack in adapted_stacks(config, backbone):
            with torch.device("meta"):
                parts = self.build_parts(config, stack, stack.first_layer)
            check_parts(config, parts, stack)
            check_size(config, parts, num_layers, self.model)

    # ---- injection -----------------------------------------------------------------------------------------------

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: Optional[dict[str, torch.Tensor]] = None,
    ) -> None:
        """See `BaseTuner.inject_adapter`. With a `state_dict`, its names say which encoder layers are adapted."""
        check_in_memory(model)
        check_alone(model, adapter_name, self.prefix)
        config: Any = fresh_config(self.peft_config[adapter_name])
        self.peft_config[adapter_name] = config
        check_adapter_name(adapter_name, model, self.prefix, self.tuner_layer_cls.parts)
        if not self.active_adapters:  # the last one was deleted
            self.active_adapter = adapter_name
        try:
            with filled_in(config):
                if state_dict is not None and issubclass(self.tuner_layer_cls, EncoderTunerLayer):
                    parts = [part for part in self.tuner_layer_cls.parts if part != AT_THE_END]
                    take_layers(config, state_dict, resolve(model), self.prefix, parts)
                super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)
        finally:
            self._injection = None
        train_marked(model, config, adapter_name, activate=adapter_name in self.active_adapters)
        backbone = resolve(model)
        self._couple_heads(model, adapter_name)
        self._freeze_feature_encoder(backbone)
        install_training_setup(model, backbone)
        keep_frozen_statistics(model)
        attentions = (locate(model.get_submodule(name), backbone.spec).attention for name in backbone.layer_names)
        install_position_detach(attentions, backbone.spec.positions, backbone.position_source)
        install_model_calls(model, backbone)
        install_read_tokens(model, backbone)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if autocast_adapter_dtype:  # PEFT leaves the modules that are trained whole behind
            train_in_float32((head for _, head in trained_modules(self.model)), adapter_name)

    def _couple_heads(self, model: nn.Module, adapter_name: str) -> None:
        heads = tuple(head for _, head in trained_modules(model))
        install_trained_modules(model)
        labels = AdapterLabels.of(model)
        labels.configs[adapter_name] = self.peft_config[adapter_name]
        for module in model.modules():
            if isinstance(module, HookedTunerLayer):
                module.couple_labels(labels)
        for head in heads:
            head.train(head.original_module.training)
        if adapter_name not in self.active_adapters:
            return
        # `inject_adapter_in_model` makes the new adapter active in the layers; PEFT leaves its heads behind, and the
        # other adapters trainable.
        self.set_adapter(self.active_adapters, inference_mode=self.peft_config[adapter_name].inference_mode)
        for head in heads:
            head.set_requires_grad(sorted(adapters_of(head) - set(self.active_adapters)), requires_grad=False)

    def set_adapter(self, adapter_name: Union[str, list[str]], inference_mode: bool = False) -> None:
        """Make these adapters the active ones, and the model's labels theirs."""
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        AdapterLabels.of(self.model).activate(self.active_adapters)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and its heads; where it was active, another one becomes active in all layers and heads."""
        was_active, labels = adapter_name in self.active_adapters, AdapterLabels.of(self.model)
        labels.take_changes()
        super().delete_adapter(adapter_name)
        labels.configs.pop(adapter_name, None)
        labels.activate(self.active_adapters)
        if was_active and self.peft_config:
            # Every layer and head has chosen for itself which adapter comes next.
            self.set_adapter(self.active_adapters or sorted(self.peft_config)[:1])

    def disable_adapter_layers(self) -> None:
        """Run the base model with its own head, until `enable_adapter_layers`."""
        switches = [
            module for module in self.modules() if isinstance(module, (HookedTunerLayer, AuxiliaryTrainingWrapper))
        ]
        if not all(module.disable_adapters for module in switches):
            self._is_frozen = not any(parameter.requires_grad for parameter in self.parameters())
        super().disable_adapter_layers()
        AdapterLabels.of(self.model).activate([])

    def enable_adapter_layers(self) -> None:
        """Undo `disable_adapter_layers`; adapters that were loaded for inference stay frozen."""
        super().enable_adapter_layers()
        AdapterLabels.of(self.model).activate(self.active_adapters)
        if self._is_frozen:  # PEFT lets adapters train that were loaded for inference
            self.requires_grad_(False)

    def unload(self) -> nn.Module:
        """Return the base model without adapters and without their hooks; a trained head stays in it."""
        model = super().unload()
        remove_position_detach(model)
        remove_read_tokens(model)
        remove_model_calls(model)
        remove_training_setup(model)
        return model

    def get_input_embeddings(self) -> Optional[nn.Module]:
        """Return the base model's; None where it has none, which accelerate asks for before it shards a model."""
        try:
            return self.model.get_input_embeddings()
        except NotImplementedError:  # what transformers raises for models that read waveforms
            return None

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen batch norms stay in evaluation mode, see `keep_frozen_statistics`."""
        super().train(mode)
        keep_frozen_statistics(self)
        return self

    def _prepare_adapter_config(self, peft_config: ConfigT, model_config: dict) -> ConfigT:  # type: ignore[override] # PEFT passes each tuner the configuration of its own type
        backbone = resolve(self.model)
        targets = self.target_names(peft_config, backbone)
        self.check_fit(peft_config, backbone)
        if peft_config.base_settings is None:
            read_settings(self.model, backbone.spec)  # refuses what cannot be remembered
        else:
            if may_sizes_differ():
                peft_config.base_settings = with_labels_that_fit(peft_config.base_settings, self.model, backbone)
            check_settings(peft_config.base_settings, self.model, backbone)
        names = modules_to_save(self.model, peft_config, backbone, targets)
        if not any(isinstance(module, HookedTunerLayer) for module in self.model.modules()):
            check_row_once(self.model, backbone)

        self._injection = Injection(backbone, frozenset(targets))
        peft_config.modules_to_save = names
        remember_settings(peft_config, self.model, backbone.spec)
        return peft_config

    def _prepare_model(self, peft_config: ConfigT, model: nn.Module) -> None:  # type: ignore[override] # as above
        parameter_name = self._place.backbone.spec.layer_weights
        is_trained = parameter_name is not None and MODULE_NAME in (peft_config.modules_to_save or ())
        if is_trained and not hasattr(model, MODULE_NAME):
            install_layer_weights(model, str(parameter_name))

    def _check_target_module_exists(self, peft_config: ConfigT, key: str) -> bool:  # type: ignore[override] # as above
        if self._injection is not None:
            return key in self._injection.targets
        return key in self.target_names(peft_config, resolve(self.model))  # somebody asks later

    @property
    def _place(self) -> Injection:
        if self._injection is None:
            raise RuntimeError("This is known only while an adapter is being put on a model: call inject_adapter.")
        return self._injection

    def _create_and_replace(  # type: ignore[override] # as above
        self,
        peft_config: ConfigT,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: Optional[str] = None,
    ) -> None:
        adapted = self.add_to(target, peft_config, adapter_name, stack_of(current_key, self._place.backbone))
        if adapted is not target:
            setattr(parent, target_name, adapted)

    def _freeze_feature_encoder(self, backbone: Backbone) -> None:
        # A frozen feature encoder still marks its input as requiring a gradient, and so runs its backward pass.
        if backbone.feature_encoder is None:
            return
        feature_encoder = base_layer_of(backbone.feature_encoder)
        if not any(parameter.requires_grad for parameter in feature_encoder.parameters()):
            freeze_feature_encoder(feature_encoder)

    # ---- taking adapters off -------------------------------------------------------------------------------------

    def _check_merge_allowed(self) -> None:
        # Layers have no `merge` of their own: whoever asks PEFT what they can do is told that they have none.
        raise ValueError(
            "These adapters cannot be merged into the base model: prompts and non-linear blocks are not a change of its "
            "weights. Use the model as it is, or `unload()` to get the base model back."
        )

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: see the message. LoRA has this method."""
        raise ValueError(
            "These adapters cannot be averaged into one: their prompts and non-linear blocks are not a change of weights. "
            "Where their outputs may add up, make several active: model.base_model.set_adapter([...])."
        )

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, HookedTunerLayer):
            child.remove_hooks()
        if isinstance(new_module, LayerWeights):
            remove_layer_weights(parent, new_module)
            return
        setattr(parent, child_name, new_module)

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    @classmethod
    def _get_adapter_state_dict(  # type: ignore[override] # as above
        cls,
        model: nn.Module,
        config: EncoderAdapterConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        # The one place that every way of saving passes: labels may have been named since the adapter was made.
        # Not by its class: FSDP's wrapper around a PeftModel passes on what is asked of it.
        own_way: Any = getattr(model, "get_base_model", None)
        base_model = model if own_way is None else own_way()
        remember_settings(config, base_model, resolve(base_model).spec)
        names = tensors_of_layers(model, list(state_dict))
        check_saved(names, state_dict, tensors_of_layers(model, list(model.state_dict()), adapter_name))
        return {name: state_dict[key] for name, key in names.items()}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Name a tensor `layers.N.<part>.<tensor>`, whatever the model calls its encoder layers.

        Those of a decoder's layers are named `decoder.layers.N.<part>.<tensor>`, those of a tuner layer around the model's
        input `input.<part>.<tensor>`.
        """
        parts = "|".join(cls.tuner_layer_cls.parts)
        pattern = rf"(base_model\.model\.)?(.*?\.)?(\w+)\.{cls.prefix}({parts})\.{re.escape(adapter_name)}\.(.+)"
        match = re.fullmatch(pattern, key)
        if match is None:
            return super()._remove_adapter_name_from_key(key, adapter_name)
        root, path, place, part, tensor = match.groups()
        stack = DECODER_LAYERS if is_in_decoder(path or "") else LAYERS
        place = f"{stack}.{place}" if place.isdigit() else "input"
        return f"{root or ''}{place}.{part}.{tensor}"

    @classmethod
    def _remap_adapter_state_dict_for_load(  # type: ignore[override] # as above
        cls,
        model: nn.Module,
        config: EncoderAdapterConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        names = tensors_of_layers(model, list(model.state_dict()), adapter_name)
        in_model = {cls._remove_adapter_name_from_key(name, adapter_name): key for name, key in names.items()}
        # Only a PeftModel has PEFT's prefix in its names; in checkpoints it is always there.
        in_model |= {PEFT_MODEL_PREFIX + name: key for name, key in in_model.items()}
        remapped = {in_model.get(name, name): tensor for name, tensor in state_dict.items()}
        check_tensors(model, adapter_name, remapped)
        return remapped

    # ---- forward -------------------------------------------------------------------------------------------------

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        adapter_names = kwargs.get("adapter_names")
        beams, sequences = (kwargs.get(name) or 1 for name in ("num_beams", "num_return_sequences"))
        repeats = {beams, sequences, beams * sequences} - {1}
        with nullcontext() if adapter_names is None else mixed_batch(self.model, adapter_names, repeats):
            yield
