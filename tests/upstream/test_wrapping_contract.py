"""The methods of PEFT and transformers that the package wraps: they exist, with the arguments that wrappers read."""

import inspect

import pytest
from peft import PeftModel
from transformers import PreTrainedModel

from peft_audio.upstream import wrapping


WHOLE = "adapters are no longer saved with all files replaced together and a complete model card"
FEATURES = {
    "SAVE_ADAPTER": WHOLE,
    "SAVE_MODEL": WHOLE,
    "WRITE_MODEL_CARD": "`create_or_update_model_card` no longer completes the model card of an adapter",
    "PUSH_TO_HUB": "the model card of a pushed adapter no longer has its id on the Hub",
    "UPLOAD_FILES": "a pushed adapter gets transformers' model card for whole models",
    "AUDIO_PIPELINE": "pipelines of resized models make inputs of the length before",
    "SPEECH_PIPELINE": "pipelines of resized recognizers make inputs of the length before",
    "LOAD_PEFT_ADAPTER": "weights of other settings are loaded over an adapter",
    "DISABLE_ADAPTERS": "labels of a plain model stay those of an adapter that is disabled",
    "ENABLE_ADAPTERS": "heads of a plain model stay disabled when its adapters are enabled",
    "INJECT_ADAPTER": "LoRA on a model with adapters of this package is on fewer modules, without a word",
    "LOAD_ADAPTER": "`model.load_adapter` and Auto classes no longer load adapters of this package",
}
each_method = pytest.mark.parametrize("constant", FEATURES)


def test_every_wrapped_method_is_in_these_tests():
    assert {getattr(wrapping, name) for name in FEATURES} == set(wrapping.WRAPPED_METHODS)


@each_method
def test_the_method_takes_the_arguments_that_its_wrapper_reads(constant):
    method = getattr(wrapping, constant)
    parameters = inspect.signature(method.original).parameters
    missing = set(method.arguments) - set(parameters)
    assert not missing, f"{FEATURES[constant]}: {method.owner.__name__}.{method.name} takes no {missing}"
    # `kwargs` is read too: load_adapter takes `download_kwargs` there.
    assert constant != "LOAD_ADAPTER" or parameters["kwargs"].kind is inspect.Parameter.VAR_KEYWORD, FEATURES[constant]


@each_method
def test_the_method_is_wrapped_where_its_library_looks_it_up(constant):
    method = getattr(wrapping, constant)
    assert getattr(method.owner, method.name) is not method.original, FEATURES[constant]
    assert method.original.__module__.split(".")[0] in ("peft", "transformers", "huggingface_hub"), FEATURES[constant]


def test_saving_and_pushing_pass_through_the_wrapped_methods():
    """Else the model card of a pushed adapter is transformers' (WRITE_MODEL_CARD, SAVE_ADAPTER, UPLOAD_FILES)."""
    saving = inspect.getsource(wrapping.SAVE_ADAPTER.original)
    assert "self.create_or_update_model_card(" in saving, FEATURES["WRITE_MODEL_CARD"]
    pushing = inspect.getsource(wrapping.PUSH_TO_HUB.original)
    assert "self.save_pretrained(" in pushing, FEATURES["PUSH_TO_HUB"]
    assert "self._upload_modified_files(" in pushing, FEATURES["UPLOAD_FILES"]


def test_auto_classes_load_adapters_with_the_wrapped_method():
    """Else `AutoModelForAudioClassification.from_pretrained(adapter)` leaves random weights (LOAD_ADAPTER)."""
    source = inspect.getsource(PreTrainedModel.from_pretrained)
    assert "load_adapter(" in source and "load_config=" in source, FEATURES["LOAD_ADAPTER"]


def test_replacing_a_method_twice_adds_one_wrapper():
    class Owner:
        def double(self, number):
            return 2 * number

    method = wrapping.UpstreamMethod(Owner, "double", ("number",))
    for _ in range(2):
        wrapping.replace_method(method, lambda original: lambda self, number: original(self, number) + 1)
    assert Owner().double(5) == 11
    assert method.original(Owner(), 5) == 10
    assert wrapping.bind(method.original, Owner(), number=5).arguments["number"] == 5


def test_peft_and_transformers_do_not_share_their_methods():
    """One wrapper for each: `PeftModel` is no `PreTrainedModel`, and saving does not pass both wrappers."""
    assert not issubclass(PeftModel, PreTrainedModel)
