"""The examples in docstrings: their code runs and prints what they show, without network, in an empty folder."""

import doctest
from pathlib import Path

import peft
import pytest
import torch
import transformers
from ssast import make_ssast
from tiny import make

import peft_audio
import peft_audio.metrics
from peft_audio.backbones import table


# Names that users call, by what their docstring is of.
DOCUMENTED = {
    "AutoPeftModelForAudioClassification": peft_audio,
    "BottleneckAdapterConfig": peft_audio,
    "EmbeddingPromptConfig": peft_audio,
    "IPETConfig": peft_audio,
    "InputPromptConfig": peft_audio,
    "ParallelMLPAdapterConfig": peft_audio,
    "PositionRule": peft_audio,
    "SideNetworkConfig": peft_audio,
    "TimeFreqConvAdapterConfig": peft_audio,
    "ast_from_ssast": peft_audio,
    "ast_from_vit": peft_audio,
    "cache_frozen": peft_audio,
    "equal_error_rate": peft_audio.metrics,
    "initialize_prompts": peft_audio,
    "last_complete_checkpoint": peft_audio,
    "mean_average_precision": peft_audio.metrics,
    "min_dcf": peft_audio.metrics,
    "register_backbone": peft_audio,
    "resize_ast": peft_audio,
    "resize_whisper": peft_audio,
    "save_activations_in_half": peft_audio,
    "use_mean_token_pooling": peft_audio,
    "use_padding_mask": peft_audio,
    "use_statistics_pooling": peft_audio,
    "write_card": peft_audio,
}
# What the examples use without importing it.
GIVEN = {
    "Path": Path,
    "get_peft_model": peft.get_peft_model,
    "peft_audio": peft_audio,
    "torch": torch,
    **{name: getattr(transformers, name) for name in ("ASTConfig", "ASTForAudioClassification", "TrainerState")},
    **{name: getattr(transformers, name) for name in ("ViTConfig", "ViTModel")},
    **{name: getattr(transformers, name) for name in ("WhisperConfig", "WhisperForAudioClassification")},
    **{name: getattr(transformers, name) for name in ("Wav2Vec2Config", "Wav2Vec2ForSequenceClassification")},
}


def examples_of(documented, name):
    """The example of a docstring, as doctest runs it."""
    (found,) = doctest.DocTestFinder(recurse=False).find(documented, name, globs=dict(GIVEN))
    return found


@pytest.fixture(scope="module", autouse=True)
def saved_before(tmp_path_factory):
    """Saves a model once: DeepSpeed, where it is installed, prints a line the first time."""
    make("ast").save_pretrained(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder but for what examples take for granted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(table, "BACKBONES", dict(table.BACKBONES))  # an example adds to it
    torch.save(make_ssast(width=64, depth=1), "SSAST-Tiny-Patch-400.pth")
    Path("checkpoint-10").mkdir()


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_example_of_a_docstring_runs(name, folder, capsys):
    documented = getattr(DOCUMENTED[name], name)
    test = examples_of(documented, name)
    assert test.examples and "Examples:" in documented.__doc__, f"{name} has no example"
    failed, attempted = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(test)
    assert attempted == len(test.examples) and failed == 0, capsys.readouterr().out


def test_an_example_that_is_wrong_fails():
    def wrong():
        """Return nothing.

        Examples:
            >>> 1 + 1
            3
        """

    reports = []
    assert doctest.DocTestRunner().run(examples_of(wrong, "wrong"), out=reports.append).failed == 1 and reports
