"""Runs each of PEFT's tests with each method: its configuration takes LoRA's place, a tiny audio model the test's model's."""

import json
import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from stand_ins import Loader, name_of
from subjects import BACKBONES, CONTROL, METHOD_NAMES, Made, config_class
from upstream import upstream


RESULTS = "PEFT_SUITE_RESULTS"
# Names in PEFT's test modules that stand for a model, and what kind of model takes their place.
TEXT_MODELS = ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForSeq2SeqLM")
TOYS = ("MLP", "DeepMLP", "MLP2", "MLP_2x_same_shape", "DummyModel", "MockTransformerWrapper")
SHARED_MODULES = ("testing_common", "testing_utils")
# Arguments of PEFT's tests that `pytest_pyfunc_call` fills in.
FILLED = {"model_id", "config_cls", "config_kwargs", "tuner_method", "config_kwargs_1", "config_kwargs_2", "config0"}
FILLED |= {"config", "config1", "config_class", "mandatory_kwargs", "peft_config", "test_name"}
# Tests of what only LoRA or another method of PEFT has, or of layers that no audio model has.
ELSEWHERE = re.compile(
    "ia3|adalora|loha|lokr|oft|hra|miss|boft|lntuning|vera|vblora|fourierft|glora|dora|monteclora|trainable_token|"
    "trainble_token|prefix_tuning|adaption_prompt|prompt_learning|conv1d|conv2d|mha|multihead|embedding_layer|"
    "add_weighted_adapter|weighted_combination|lora_conversion|lora_bias|target_parameters|stable_diffusion|"
    "resized_embedding|similarly_named|osf|rank_and_alpha|hub_model|gralora|randlora|adapter_name_makes_no_difference|"
    "from_state_dict_and_from_config|get_and_set_peft_model_state_dict|named_like_peft_prefix|requires_grad_lora_|"
    "requires_grad_modules_to_save_|with_weight_conversion|irregular_targets|gpu_large|cache_dir_remote"
)


class Subject(NamedTuple):
    backbone: str
    method: str
    config: Any
    logits: Any


def pytest_generate_tests(metafunc):
    backbones = getattr(metafunc.cls, "backbones", BACKBONES[:1])
    names = [f"{backbone}-{method}" for backbone in backbones for method in (CONTROL, *METHOD_NAMES)]
    metafunc.parametrize("subject", [tuple(name.split("-")) for name in names], ids=names, indirect=True)


def pytest_collection_modifyitems(config, items):
    """Leave out tests of other methods, and those that differ in nothing but what is filled in."""
    kept, seen = [], set()
    for item in items:
        rest = [f"{name}={value}" for name, value in item.callspec.params.items() if name not in FILLED]
        key = (item.cls, item.originalname, *sorted(rest))
        if key not in seen and not ELSEWHERE.search(item.originalname):
            kept.append(item)
        seen.add(key)
    items[:] = kept


def replacements(subject):
    """By name, what takes the place of a global of PEFT's test modules."""
    return {
        "LoraConfig": subject.config,
        "hub_online_once": lambda model_id: nullcontext(),
        "AutoModel": Loader(subject.backbone, bare=True),
        **dict.fromkeys(TEXT_MODELS, Loader(subject.backbone)),
        **dict.fromkeys(TOYS, subject.logits),
    }


@pytest.fixture(autouse=True)
def subject(request, monkeypatch):
    """The method and the models of this test, in the place of PEFT's own."""
    backbone, method = request.param
    subject = Subject(backbone, method, config_class(method), Loader(backbone, only_logits=True))
    cls = request.node.cls
    for module in map(upstream, (cls.upstream_module, *SHARED_MODULES)):
        for name, value in replacements(subject).items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    if hasattr(cls, "model_kind"):
        monkeypatch.setattr(cls, "transformers_class", Loader(backbone, **cls.model_kind))
    Made.count = 0
    return subject


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Put the subject into the arguments that PEFT's own parametrization filled with others."""
    backbone, method = pyfuncitem.callspec.params["subject"]
    arguments, cls = pyfuncitem.funcargs, config_class(method)
    values = {"model_id": name_of(backbone), "config_cls": cls, "config_kwargs": {}, "mandatory_kwargs": {}}
    values |= {"config_kwargs_1": {"init_weights": False}, "config_kwargs_2": {"init_weights": False}}
    values |= {"config_class": cls.__base__, "test_name": "case", "tuner_method": method}
    Made.count += "config_class" in arguments
    for name in {"config", "config0", "config1", "peft_config"} & arguments.keys():
        values[name] = cls(init_weights=False)
    arguments.update({name: value for name, value in values.items() if name in arguments})
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report.user_properties.append(("configurations", Made.count))
    if call.excinfo is not None:
        text = str(call.excinfo.value) or str(call.excinfo.traceback[-1].statement)
        report.user_properties.append(("message", f"{call.excinfo.typename}: {text}"))
    return report


class Recorder:
    """Writes one line a test to the file of results."""

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.outcome == "passed":
            return
        test, _, parameters = report.nodeid.partition("[")
        names = parameters.rstrip("]").split("-")
        subject = [next(name for name in names if name in known) for known in (BACKBONES, (CONTROL, *METHOD_NAMES))]
        line = {"configurations": 0, "message": "", **dict(report.user_properties)}
        line |= {
            "suite": test.split("::")[1],
            "test": test.split("::")[-1],
            "case": "-".join(name for name in names if name and name not in (*subject, "case")),
            "backbone": subject[0],
            "method": subject[1],
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
        }
        with Path(os.environ[RESULTS]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder())
