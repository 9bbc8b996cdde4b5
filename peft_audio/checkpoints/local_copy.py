"""An adapter's files on this machine, all of the same commit."""

from __future__ import annotations

import os
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from peft.utils import CONFIG_NAME


def local_copy(source: str, location: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a folder with the adapter, and what is left of `location` there: the subfolder.

    PEFT looks for the files of a subfolder under another path when it is offline.

    Args:
        source: folder or Hub id of the adapter.
        location: `subfolder`, `revision` and the like, as PEFT's loading functions take them.

    Raises:
        ValueError: if there is no adapter.
    """
    subfolder, revision = location.get("subfolder"), location.get("revision")
    inside = {} if subfolder is None else {"subfolder": subfolder}
    if os.path.isdir(source):
        return source, inside
    files = [f"{subfolder}/{name}" if subfolder else name for name in (CONFIG_NAME, "adapter_model.*")]
    place = f"{source!r}, revision {revision or 'main'!r}, folder {subfolder or '.'!r}"
    missing = f"Can't find {CONFIG_NAME!r} at {place}: there is no adapter. Check the name, or push the adapter first."
    options = {name: value for name, value in location.items() if name != "subfolder"}
    try:
        folder = snapshot_download(source, allow_patterns=files, **options)
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError, LocalEntryNotFoundError) as error:
        raise ValueError(f"{missing} ({error})") from error
    if not os.path.isfile(os.path.join(folder, files[0])):
        raise ValueError(missing)
    return folder, inside
