"""PEFT's test classes, with one place holder in each of its own lists of methods and models; `plugin` fills it in."""

import inspect

import pytest
import torch
from peft import get_peft_model
from subjects import BACKBONES
from upstream import upstream


common = upstream("testing_common")
custom = upstream("test_custom_models")
encoders = upstream("test_feature_extraction_models")
low_level = upstream("test_low_level_api")
tuners = upstream("test_tuners_utils")
helpers = upstream("test_helpers")
start = upstream("test_initialization")
mapping = upstream("test_mapping")
hub = upstream("test_hub_features")
configs = upstream("test_config")

# The lists that PEFT's tests are parametrised over, and how many values a row of each has.
LISTS = [
    (custom.TEST_CASES, 4),
    (custom.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES, 5),
    (custom.MIXED_ADAPTER_TEST_CASES, 3),
    (custom.ALL_PEFT_CONFIG_CLASSES, 1),
    (encoders.ALL_CONFIGS, 2),
    (encoders.PEFT_FEATURE_EXTRACTION_MODELS_TO_TEST, 1),
]
for rows, width in LISTS:
    rows[:] = [pytest.param(*[None] * width, id="case")]


def choices_of(method):
    """Values for what a method of PEFT's common tester asks for besides a model and a configuration."""
    options = inspect.signature(method).parameters
    if "dtype" in options:
        return [{"dtype": dtype} for dtype in (torch.float16, torch.bfloat16)]
    if "use_reentrant" in options:
        return [{"use_reentrant": value} for value in (True, False)]
    if "raises_err" in options:
        return [{"raises_err": False}]
    return [{"test_name": method.__name__}] if "test_name" in options else [{}]


def common_test(method):
    """A test that calls a method of PEFT's common tester."""

    @pytest.mark.parametrize("option", choices_of(method), ids=lambda option: "".join(map(str, option.values())))
    @pytest.mark.parametrize("model_id, config_cls, config_kwargs", [pytest.param(*[None] * 3, id="case")])
    def test(self, model_id, config_cls, config_kwargs, option):
        method(self, model_id=model_id, config_cls=config_cls, config_kwargs={"init_weights": False}, **option)

    return test


class TestCommon(common.PeftCommonTester):
    """Every test that PEFT's classes for text, image and toy models share, on audio classifiers."""

    upstream_module = "testing_common"
    backbones = BACKBONES
    model_kind = {}

    def prepare_inputs_for_testing(self):
        return {"input_ids": torch.tensor([[1, 1, 1], [1, 2, 1]]), "attention_mask": torch.ones(2, 3)}


for name, method in inspect.getmembers(common.PeftCommonTester, inspect.isfunction):
    if name.startswith("_test_") and "config_cls" in inspect.signature(method).parameters:
        setattr(TestCommon, name.removeprefix("_"), common_test(method))


class TestEncoders(encoders.TestPeftFeatureExtractionModel):
    """The same on bare encoders, as PEFT's class for feature extraction runs them."""

    upstream_module = "test_feature_extraction_models"
    model_kind = {"bare": True}
    test_load_model_low_cpu_mem_usage = (
        None  # reads its method and model from the lists themselves; it is in TestCommon
    )


class TestCustomModels(custom.TestPeftCustomModel):
    """PEFT's tests of toy models, on audio models that return logits alone."""

    upstream_module = "test_custom_models"
    model_kind = {"only_logits": True}


class TestMultipleActiveAdapters(custom.TestMultipleActiveAdapters):
    upstream_module = "test_custom_models"
    backbones = BACKBONES


class TestMixedAdapterBatches(custom.TestMixedAdapterBatches):
    upstream_module = "test_custom_models"
    backbones = BACKBONES


class TestRequiresGrad(custom.TestRequiresGrad):
    upstream_module = "test_custom_models"


class TestStatus(tuners.TestModelAndLayerStatus):
    upstream_module = "test_tuners_utils"

    @pytest.fixture
    def small_base_model_cls(self, subject):
        return subject.logits

    @pytest.fixture
    def large_model(self, subject):
        model = get_peft_model(subject.logits(), subject.config(target_modules=["lin0", "conv1", "emb0"]))
        model.add_adapter("other", subject.config(target_modules=["lin0", "lin1"]))
        return model


class TestLowLevel(low_level.TestLowLevelFunctional):
    upstream_module = "test_low_level_api"


class TestInjectFromStateDict(low_level.TestInjectAdapterFromStateDict):
    upstream_module = "test_low_level_api"


class TestStateDict(low_level.TestPeftStateDict):
    upstream_module = "test_low_level_api"


class TestBaseModelStateDict(low_level.TestGetBaseModelStateDict):
    upstream_module = "test_low_level_api"


class TestStateDictShapes(low_level.TestStateDictFsdpShapeValidation):
    upstream_module = "test_low_level_api"


class TestLowCpuMemUsage(start.TestLowCpuMemUsage):
    upstream_module = "test_initialization"
    backbones = BACKBONES

    @pytest.fixture
    def lora_config(self, subject):
        return subject.config(init_weights=False)

    @pytest.fixture
    def lora_path(self, lora_config, tmp_path):
        get_peft_model(self.get_model(), lora_config).save_pretrained(tmp_path)
        return tmp_path

    @pytest.fixture
    def inputs(self):
        return {"input_ids": torch.arange(10)[None]}


class TestNamingConflict(start.TestNamingConflictWarning):
    upstream_module = "test_initialization"


class TestModelNames(start.TestCustomModelConfigWarning):
    upstream_module = "test_initialization"

    @pytest.fixture
    def custom_module(self, subject):
        return subject.logits()


class TestHelpers(helpers.TestCheckIsPeftModel):
    upstream_module = "test_helpers"


class TestGetPeftModel(mapping.TestGetPeftModel):
    upstream_module = "test_mapping"

    @pytest.fixture
    def base_model(self, subject):
        return subject.logits()


class TestSavingWithoutHub(hub.TestLocalModel):
    upstream_module = "test_hub_features"


class TestConfig(configs.TestPeftConfig):
    upstream_module = "test_config"
