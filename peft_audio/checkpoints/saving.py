"""What saving does beside PEFT's own: all files change together, and the card says what the adapter is.

PEFT writes the files of an adapter one by one and in place, and has no way for a tuner type to say how. So this wraps
`save_pretrained` of `PeftModel` and of transformers' models; other tuner types are saved exactly as before.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Optional

from huggingface_hub import ModelCard
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from transformers import PreTrainedModel

from ..config import EncoderAdapterConfig
from ..upstream.wrapping import replace_method
from ..utils.atomic_files import written_together
from .model_card import CARD_NAME, CardFacts, load_card, read_facts, updated_card


# A folder holds the weights in one format: of two files PEFT would read the wrong one.
OTHER_FORMAT = {SAFETENSORS_WEIGHTS_NAME: WEIGHTS_NAME, WEIGHTS_NAME: SAFETENSORS_WEIGHTS_NAME}
HUB_ID: ContextVar[Optional[str]] = ContextVar("HUB_ID", default=None)


def wrap_saving() -> None:
    """Let the classes that save adapters do so whole and with a card. Doing it again changes nothing."""
    replace_method(PeftModel, "save_pretrained", _saving_whole)
    replace_method(PreTrainedModel, "save_pretrained", _saving_whole)
    replace_method(PeftModel, "create_or_update_model_card", _completing_card)
    replace_method(PeftModel, "push_to_hub", _naming_the_hub)
    replace_method(PeftModel, "_upload_modified_files", _uploading_the_card)


def _has_adapters_of_ours(model: Any) -> bool:
    configs = getattr(model, "peft_config", None)
    return isinstance(configs, dict) and any(isinstance(config, EncoderAdapterConfig) for config in configs.values())


def _saving_whole(original: Callable) -> Callable:
    signature = inspect.signature(original)

    def save_pretrained(self, save_directory, *args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(self, save_directory, *args, **kwargs).arguments
        # A model that pushes from its folder needs that folder; processes that do not write have nothing to replace.
        elsewhere = arguments.get("push_to_hub") or not arguments.get("is_main_process", True)
        if not _has_adapters_of_ours(self) or elsewhere:
            return original(self, save_directory, *args, **kwargs)
        folder = Path(save_directory)
        with written_together(folder, OTHER_FORMAT) as staged:
            card = load_card(folder)
            if card is not None:
                card.save(staged / CARD_NAME)  # PEFT goes on from the card that is there
            result = original(self, str(staged), *args, **kwargs)
            _write_card(staged, folder)
        return result

    return save_pretrained


def _write_card(staged: Path, folder: Path) -> None:
    """Put into the folder being written the card that goes on from the one in `folder`."""
    facts = _facts(staged, folder)
    if facts is not None:
        made = load_card(staged)  # by PEFT, with its tags
        updated_card(load_card(folder) or made, facts, tags=_tags(made)).save(staged / CARD_NAME)


def _facts(written: Path, folder: Path) -> Optional[CardFacts]:
    name = HUB_ID.get() or folder.resolve().name
    return read_facts(written, name, beside=folder)


def _tags(card: Optional[ModelCard]) -> tuple[str, ...]:
    return () if card is None else tuple(card.data.tags or ())


def _completing_card(original: Callable) -> Callable:
    def create_or_update_model_card(self, output_dir: str) -> None:
        before = load_card(Path(output_dir))
        original(self, output_dir)
        facts = _facts(Path(output_dir), Path(output_dir)) if _has_adapters_of_ours(self) else None
        if facts is not None:  # else the adapter is still to be written, and the card follows it
            card = updated_card(load_card(Path(output_dir)), facts, tags=_tags(before))
            with written_together(Path(output_dir)) as staged:
                card.save(staged / CARD_NAME)

    return create_or_update_model_card


def _naming_the_hub(original: Callable) -> Callable:
    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        with _hub_id(repo_id):
            return original(self, repo_id, *args, **kwargs)

    return push_to_hub


def _uploading_the_card(original: Callable) -> Callable:
    signature = inspect.signature(original)

    def _upload_modified_files(self, *args: Any, **kwargs: Any) -> Any:
        # push_to_hub has put a card of transformers', for whole models, in the place of the adapter's.
        folder = Path(signature.bind(self, *args, **kwargs).arguments["working_dir"])
        facts = _facts(folder, folder) if _has_adapters_of_ours(self) else None
        if facts is not None:
            card = load_card(folder)
            updated_card(card, facts, tags=_tags(card)).save(folder / CARD_NAME)
        return original(self, *args, **kwargs)

    return _upload_modified_files


@contextmanager
def _hub_id(repo_id: str) -> Iterator[None]:
    token = HUB_ID.set(os.fspath(repo_id))
    try:
        yield
    finally:
        HUB_ID.reset(token)
