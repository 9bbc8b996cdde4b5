"""What transformers' loading functions are given and give back.

Relied upon: the arguments of `PreTrainedModel.load_adapter`, where `from_pretrained` of an adapter's folder passes
itself as `load_config`; the `download_kwargs` and `ignore_mismatched_sizes` in it and among the keyword arguments; the report of
`from_pretrained(..., output_loading_info=True)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


# Arguments that say which files of a Hub repository are loaded; PEFT's loading functions have the same names.
LOCATION = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download")


def adapter_location(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return where on the Hub an adapter is, as keyword arguments of PEFT's loading functions.

    Args:
        arguments: those of a call of `load_adapter`, by name. What is said twice is taken from `adapter_kwargs`, then
            from `download_kwargs` of the call, then from those of `load_config`.
    """
    given = dict(getattr(arguments.get("load_config"), "download_kwargs", None) or {})
    given |= arguments.get("kwargs", {}).get("download_kwargs") or {}
    given |= arguments.get("adapter_kwargs") or {}
    if arguments.get("local_files_only"):
        given["local_files_only"] = True
    return {name: given[name] for name in LOCATION if given.get(name) is not None}


def may_sizes_differ_in(arguments: Mapping[str, Any]) -> bool:
    """Whether a call of `load_adapter` asks to leave out tensors of other sizes."""
    own = arguments.get("kwargs", {}).get("ignore_mismatched_sizes")
    return bool(own or getattr(arguments.get("load_config"), "ignore_mismatched_sizes", False))


def is_called_by_from_pretrained(arguments: Mapping[str, Any]) -> bool:
    """Whether `from_pretrained` made the model for this adapter just now, from a call of `load_adapter`."""
    return arguments.get("load_config") is not None


def keys_left_random(info: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the model's tensors that no file had, and those that the file had in another shape.

    Args:
        info: the loading info of `from_pretrained`.
    """
    # An entry is a name, or a name with the two shapes.
    mismatched = [entry[0] if isinstance(entry, tuple) else entry for entry in info["mismatched_keys"]]
    return sorted(info["missing_keys"]), sorted(mismatched)
