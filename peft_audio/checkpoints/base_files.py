"""The files of a base model whose folder holds an adapter too.

transformers' auto classes load an adapter that they find beside a model's files, by their own rules.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

from huggingface_hub import snapshot_download
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file


Loaded = tuple[PreTrainedModel, dict[str, Any]]
OF_ADAPTERS = "adapter_*"


def load_without_adapter(
    load: Callable[..., Loaded], name: str, revision: Optional[str], location: dict[str, Any]
) -> Loaded:
    """Return `load(name, revision)`; where an adapter is beside the model's files, load from a folder of links to the others.

    Args:
        load: returns a model and what is known of its loading.
        name: folder or Hub id of the model.
        revision: branch, tag or commit of its repository.
        location: `token` and the like, as huggingface_hub takes them.
    """
    if find_adapter_config_file(name, revision=revision, **location) is None:
        return load(name, revision=revision)
    folder = name
    if not os.path.isdir(name):
        folder = snapshot_download(name, revision=revision, ignore_patterns=[OF_ADAPTERS], **location)
    links = tempfile.TemporaryDirectory(prefix="peft-audio-base-")
    for path in Path(folder).iterdir():
        if path.is_file() and not path.match(OF_ADAPTERS):
            os.symlink(path.resolve(), Path(links.name) / path.name)
    model, info = load(links.name)
    model.name_or_path = model.config._name_or_path = name
    weakref.finalize(model, links.cleanup)  # weights that stay on disk are read there
    return model, info
