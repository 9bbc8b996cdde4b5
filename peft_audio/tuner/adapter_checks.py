"""What is refused before an adapter is put on a model: names that PEFT mixes up, and other adapters in its way."""

from __future__ import annotations

from accelerate.utils import has_offloaded_params
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..config import EncoderAdapterConfig, method_fields
from ..upstream.peft_modules import adapter_names, adapters_of, trained_modules
from ..utils.validation import is_integer
from .adapter_parts import AdapterParts
from .trained_modules import paths_of
from .tuner_layer import HookedTunerLayer


LARGE = 10**8  # parameters that no machine lacks the memory for


def check_alone(model: nn.Module, adapter_name: str, prefix: str) -> None:
    """Raise ValueError if the model has adapters that another one with this name and prefix cannot join.

    Adapters of PEFT's own types may be there; their layers lie within those of this package.
    """
    if isinstance(model, PeftModel):
        is_ours = any(isinstance(layer, HookedTunerLayer) for layer in model.modules())
        way_out = (
            "Add another one with model.add_adapter(name, config), or take them off with model = model.unload()."
            if is_ours
            else f"Give its base model, whose {model.peft_type} adapters stay: get_peft_model(model.get_base_model(), config, "
            "adapter_name='new'), or take them off with model = model.unload()."
        )
        raise ValueError(
            f"The model must be a base model, got a {type(model).__name__}, which has adapters already. {way_out}"
        )
    for layer in model.modules():
        if isinstance(layer, HookedTunerLayer) and layer.prefix != prefix:
            raise ValueError(
                f"This {type(model).__name__} has adapters of another method ({layer.prefix.rstrip('_')}), whose layers the "
                "new adapter cannot use. Take them off first with peft_model.unload(), or load the base model again."
            )
        if isinstance(layer, HookedTunerLayer) or not isinstance(layer, BaseTunerLayer):
            continue
        if adapter_name in adapter_names(layer):
            raise ValueError(
                f"`adapter_name` must differ from the names of adapters on the model, got {adapter_name!r}, which a "
                f"{type(layer).__name__} has. Choose another name, e.g. get_peft_model(model, config, adapter_name='new')."
            )


def check_adapter_name(adapter_name: str, model: nn.Module, prefix: str, parts: tuple[str, ...]) -> None:
    """Raise ValueError if PEFT could not tell the adapter's tensors from others by this name."""
    # torch takes as keys of a ModuleDict neither names with dots nor those of the dictionary's own attributes.
    if not adapter_name or "." in adapter_name or hasattr(nn.ModuleDict(), adapter_name):
        raise ValueError(
            f"`adapter_name` must be a name that torch.nn.ModuleDict takes as a key, not empty and without dots, got "
            f"{adapter_name!r}. Choose another name."
        )
    segments = {segment for name, _ in model.named_parameters() for segment in name.split(".")}
    adapters = {name for _, module in trained_modules(model) for name in adapters_of(module)}
    for layer in model.modules():
        if isinstance(layer, HookedTunerLayer):
            adapters |= adapter_names(layer)
    reserved = (segments - adapters) | set(parts) | {prefix + part for part in parts}
    if adapter_name in reserved:
        raise ValueError(
            f"`adapter_name` must differ from the names of the model's modules and tensors, got {adapter_name!r}: PEFT "
            "could not tell the adapter's tensors from the model's. Choose another name."
        )


def check_apart(names: list[str], model: nn.Module, targets: set[str]) -> None:
    """Raise ValueError if modules to be trained whole lie within one another, or around or within adapted ones."""
    paths = paths_of(names, model)
    for path in paths:
        for other in targets | set(paths) - {path}:
            if path == other or path.startswith(other + ".") or other.startswith(path + "."):
                raise ValueError(
                    f"`modules_to_save` must name modules apart from each other and from what the adapter is put on, got "
                    f"{names!r}: {path!r} and {other!r} are not. Name the head's modules, or leave the field out."
                )


def check_in_memory(model: nn.Module) -> None:
    """Raise ValueError if weights of the model are offloaded to the CPU or to disk, in place of which there are none."""
    # PEFT takes accelerate's hooks off a model with a device map before the adapter is put on.
    was_offloaded = bool({"cpu", "disk"} & set(map(str, (getattr(model, "hf_device_map", None) or {}).values())))
    is_offloaded = any(map(has_offloaded_params, model.modules()))
    if is_offloaded or (was_offloaded and any(parameter.is_meta for parameter in model.parameters())):
        raise ValueError(
            f"The weights of the base model must be in memory, but accelerate offloads some of this {type(model).__name__} "
            "to the CPU or to disk, and adapters cannot be put on what is not there. Load it without `device_map`, put "
            "the adapter on, and offload the whole then, e.g. with accelerate.cpu_offload(model, execution_device=0)."
        )


def check_size(config: EncoderAdapterConfig, parts: AdapterParts, num_layers: int, model: nn.Module) -> None:
    """Raise ValueError if an adapter would take far more memory than its model, before it takes any.

    Args:
        config: its configuration, which may come from a stranger's file.
        parts: what it puts on one layer, on the meta device.
        num_layers: number of layers that it is put on.
        model: the base model.
    """
    modules = [part for part in parts if isinstance(part, nn.Module)]
    size = num_layers * sum(parameter.numel() for module in modules for parameter in module.parameters())
    model_size = sum(parameter.numel() for parameter in model.parameters())
    if size > max(LARGE, 10 * model_size):
        sizes = {name: value for name in method_fields(config) if is_integer(value := getattr(config, name))}
        name = max(sizes, key=lambda field: sizes[field])
        raise ValueError(
            f"`{name}` must give an adapter of at most ten times the {model_size:,} parameters of this "
            f"{type(model).__name__}, got {sizes[name]}, which makes {size:,}. Take a smaller value."
        )
