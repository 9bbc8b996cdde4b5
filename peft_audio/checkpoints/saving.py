"""Saving adapters so that all files of a folder change together, with a complete model card.

PEFT writes the files of an adapter one by one, over those that are there. It has no way for a tuner type to change
that. So the methods that save are wrapped, those of `PeftModel` and of transformers' models. Adapters of other tuner
types are saved exactly as before.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Optional, Union

from huggingface_hub import ModelCard
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from transformers import PreTrainedModel

from ..config import EncoderAdapterConfig
from ..upstream.peft_state_dict import by_own_names
from ..upstream.wrapping import (
    PUSH_TO_HUB,
    SAVE_ADAPTER,
    SAVE_MODEL,
    UPLOAD_FILES,
    WRITE_MODEL_CARD,
    bind,
    replace_method,
)
from ..utils.atomic_files import written_together
from .model_card import CARD_NAME, CardFacts, load_card, read_facts, tags_of, updated_card


# A folder holds the weights in one format. Of two files PEFT would read the wrong one.
OTHER_FORMAT = {SAFETENSORS_WEIGHTS_NAME: WEIGHTS_NAME, WEIGHTS_NAME: SAFETENSORS_WEIGHTS_NAME}
UNREADABLE_CARD_NAME = "README.unreadable.md"
HUB_ID: ContextVar[Optional[str]] = ContextVar("HUB_ID", default=None)  # that a model is being pushed to


def wrap_saving() -> None:
    """Wrap the methods of PEFT and transformers that save adapters. Calling it again changes nothing."""
    replace_method(SAVE_ADAPTER, _saving_together)
    replace_method(SAVE_MODEL, _saving_together)
    replace_method(WRITE_MODEL_CARD, _completing_card)
    replace_method(PUSH_TO_HUB, _naming_the_hub)
    replace_method(UPLOAD_FILES, _uploading_the_card)


def _has_adapters_of_ours(model: Any) -> bool:
    configs = getattr(model, "peft_config", None)
    return isinstance(configs, dict) and any(isinstance(config, EncoderAdapterConfig) for config in configs.values())


def _saving_together(original: Callable[..., Any]) -> Callable[..., Any]:
    def save_pretrained(
        self: Union[PeftModel, PreTrainedModel], save_directory: Union[str, os.PathLike], *args: Any, **kwargs: Any
    ) -> Any:
        bound = bind(original, self, save_directory, *args, **kwargs)
        arguments = bound.arguments
        # A model that is pushed from its folder needs that folder. Processes that do not write replace nothing.
        needs_folder = arguments.get("push_to_hub") or not arguments.get("is_main_process", True)
        if not _has_adapters_of_ours(self):
            return original(self, save_directory, *args, **kwargs)
        given = arguments if "state_dict" in arguments else arguments.get("kwargs", {})
        if given.get("state_dict"):
            given["state_dict"] = by_own_names(self, given["state_dict"])
        if needs_folder:
            return original(*bound.args, **bound.kwargs)
        folder = Path(save_directory)
        with written_together(folder, OTHER_FORMAT) as staged:
            # PEFT finds no model card here: it would update one that cannot be read, and fail before the weights.
            arguments["save_directory"] = str(staged)
            result = original(*bound.args, **bound.kwargs)
            _try_to_write_card(staged, folder, files=staged)
        return result

    return save_pretrained


def _try_to_write_card(staged: Path, folder: Path, files: Path) -> None:
    """Complete the model card in `staged`, which PEFT has just made, with what the one in `folder` says.

    An error becomes a warning: weights are saved whatever is wrong with a model card.

    Args:
        staged: a folder whose files replace those of `folder`.
        folder: the folder that is written to.
        files: where the adapter's files are.
    """
    before = _readable_card(folder, keep_in=staged)
    is_complete = False
    try:
        facts = _facts(files, folder)
        if facts is not None:  # else the adapter is not written yet; its model card comes after it
            from_peft = load_card(staged)
            card = updated_card(before or from_peft, facts, tags=tags_of(from_peft))
            card.save(staged / CARD_NAME)
            is_complete = True
    except Exception as error:  # the card is made of what strangers wrote
        warnings.warn(f"The model card could not be written, the adapter is not affected: {error!r}.", stacklevel=3)
    if before is not None and not is_complete:
        (staged / CARD_NAME).unlink(missing_ok=True)  # the present one stays


def _readable_card(folder: Path, keep_in: Path) -> Optional[ModelCard]:
    """Return the model card in `folder`; one that cannot be read is copied to `keep_in` under another name."""
    try:
        return load_card(folder)
    except (ValueError, OSError) as error:
        warnings.warn(f"{error} It is kept as {UNREADABLE_CARD_NAME}, and a new one is written.", stacklevel=4)
        shutil.copyfile(folder / CARD_NAME, keep_in / UNREADABLE_CARD_NAME)
        return None


def _facts(written: Path, folder: Path) -> Optional[CardFacts]:
    name = HUB_ID.get() or folder.resolve().name
    return read_facts(written, name, beside=folder)


def _completing_card(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_or_update_model_card(self: PeftModel, output_dir: str) -> None:
        if not _has_adapters_of_ours(self):
            return original(self, output_dir)
        folder = Path(output_dir)
        with written_together(folder) as staged:
            original(self, str(staged))
            _try_to_write_card(staged, folder, files=folder)

    return create_or_update_model_card


def _naming_the_hub(original: Callable[..., Any]) -> Callable[..., Any]:
    def push_to_hub(self: PeftModel, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        with _hub_id(repo_id):
            return original(self, repo_id, *args, **kwargs)

    return push_to_hub


def _uploading_the_card(original: Callable[..., Any]) -> Callable[..., Any]:
    def upload_modified_files(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        # push_to_hub has replaced the adapter's model card by transformers' card for whole models.
        folder = Path(bind(original, self, *args, **kwargs).arguments["working_dir"])
        facts = _facts(folder, folder) if _has_adapters_of_ours(self) else None
        if facts is not None:
            card = load_card(folder)
            updated_card(card, facts, tags=tags_of(card)).save(folder / CARD_NAME)
        return original(self, *args, **kwargs)

    return upload_modified_files


@contextmanager
def _hub_id(repo_id: str) -> Iterator[None]:
    token = HUB_ID.set(os.fspath(repo_id))
    try:
        yield
    finally:
        HUB_ID.reset(token)
