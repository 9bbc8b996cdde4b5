"""Adapters on the Hub: pushed to a server on this machine, and loaded from it again.

huggingface_hub reads the Hub's address once, when it is imported, so all that talks to the server runs in a process of
its own. That process can connect to nothing but the server.
"""

import json
import multiprocessing
import os
import socket
from concurrent.futures import ProcessPoolExecutor

import pytest
from hub_client import (
    ADAPTER,
    CONFIGS,
    LOADERS,
    UPLOADS,
    connect_only_to,
    connections_elsewhere,
    download,
    error_of,
    error_of_upload,
    load_auto,
    load_extractor,
    load_offline,
    load_peft,
    load_plain,
    load_without_environment_token,
    push_adapter,
    push_base,
    push_trainer,
    run_card_of,
    run_script,
    save_adapter,
    tag,
    train,
    upload,
    write_sources,
)
from hub_server import TOKEN, HubServer, StoredFile, card_problems, metadata_of
from peft import get_peft_model
from tiny import BACKBONES


class Hub:
    """The server, and (called with a function and its arguments) the process that talks to it."""

    def __init__(self, server, home):
        self.server = server
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, context, connect_only_to, (server.server_port,))
        with pytest.MonkeyPatch.context() as patch:
            for name in list(os.environ):
                if name.startswith(("HF_", "HUGGINGFACE_")) or name.lower().endswith("_proxy"):
                    patch.delenv(name)
            patch.setenv("HF_ENDPOINT", server.url)
            patch.setenv("HF_HOME", str(home))
            patch.setenv("HF_TOKEN", TOKEN)
            for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"):
                patch.setenv(name, "1")
            for name in ("HF_HUB_OFFLINE", "HF_UPDATE_DOWNLOAD_COUNTS"):
                patch.setenv(name, "0")
            self(os.getpid)  # it starts with the first call

    def __call__(self, function, *arguments, **options):
        return self.pool.submit(function, *arguments, **options).result(timeout=120)

    def traffic(self, function, *arguments, **options):
        """What the function returns, and the requests that it makes."""
        before = len(self.server.requests)
        result = self(function, *arguments, **options)
        return result, self.server.requests[before:]


@pytest.fixture(scope="module")
def running_hub(tmp_path_factory):
    with HubServer() as server:
        hub = Hub(server, tmp_path_factory.mktemp("hub"))
        for backbone in ("ast", "wav2vec2"):
            hub(push_base, backbone, f"me/{backbone}")
        yield hub
        hub.pool.shutdown()


@pytest.fixture
def hub(running_hub):
    yield running_hub
    assert running_hub(connections_elsewhere) == []


def read(folder):
    """The content of the files below a folder by their path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def name_of(folder):
    """A repository of its own for each test."""
    return f"me/{folder.name.strip('_')}"


@pytest.mark.parametrize("place", [("203.0.113.1", 80), ("localhost", 80)])
def test_the_client_can_connect_to_the_server_alone(hub, place):
    assert hub(error_of, socket.create_connection, place, 1).startswith("PermissionError")
    assert hub(connections_elsewhere) == [place]
    assert hub.traffic(load_extractor, "me/ast")[1] != []


@pytest.mark.parametrize(("backbone", "method"), [("ast", "ipet"), ("ast", "aat_ms"), ("wav2vec2", "conformer")])
def test_a_pushed_adapter_comes_back(hub, backbone, method, tmp_path):
    repository = name_of(tmp_path)
    expected = hub(push_adapter, repository, tmp_path, backbone, method=method)
    actual, requests = hub.traffic(load_auto, repository, backbone)
    assert actual == expected
    fetched = [request for request in requests if request.startswith(f"GET /{repository}/resolve/")]
    assert len([request for request in fetched if request.endswith("/adapter_model.safetensors")]) == 1
    assert hub(load_peft, repository, backbone) == expected

    pushed, saved = hub(download, repository), read(tmp_path)
    assert pushed.keys() == saved.keys() == {*ADAPTER, "README.md"}
    assert all(pushed[name] == saved[name] for name in ADAPTER)
    assert json.loads(pushed["adapter_config.json"])["base_model_name_or_path"] == f"me/{backbone}"


@pytest.mark.parametrize(
    "method",
    [
        "lora",
        "ipet",
        "time_freq_conv",
    ],
)
def test_load_adapter_of_transformers(hub, method, tmp_path):
    expected = hub(push_adapter, name_of(tmp_path), tmp_path, method=method)
    assert hub(load_plain, name_of(tmp_path)) == expected


@pytest.mark.parametrize("loader", ["auto", "peft"])
def test_a_revision_selects_older_weights(hub, loader, tmp_path):
    repository = name_of(tmp_path)
    first = hub(push_adapter, repository, tmp_path, adapter_name="mine")
    commit = hub.server.repository(repository).branches["main"]
    hub(tag, repository, "v1")
    second = hub(push_adapter, repository, tmp_path, adapter_name="mine", seed=3)
    draft = hub(push_adapter, repository, tmp_path, adapter_name="mine", seed=4, branch="draft")
    assert first != second != draft != first

    expected = {"v1": first, commit: first, "main": second, None: second, "draft": draft}
    for revision, value in expected.items():
        options = {"subfolder": "mine", "adapter_name": "another", "revision": revision}
        assert hub(LOADERS[loader], repository, **options) == value, revision


def test_the_base_model_is_read_at_the_revision_it_was_trained_at(hub, tmp_path):
    base, repository = f"{name_of(tmp_path)}-base", name_of(tmp_path)
    hub(push_base, "ast", base)
    hub(tag, base, "v1")
    expected = hub(push_adapter, repository, tmp_path, base=base, revision="v1")
    hub(push_base, "ast", base, seed=1)
    assert hub(load_auto, repository) == expected
    assert hub(push_adapter, f"{repository}-newer", tmp_path, base=base) != expected


ABSENT = {
    "repository": ("me/nowhere", {}, "/me/nowhere/"),
    "revision": ("me/ast", {"revision": "v9"}, "v9"),
    "subfolder": ("me/ast", {"subfolder": "inner"}, "inner"),
    "adapter": ("me/ast", {}, "adapter_config.json"),
}


@pytest.mark.parametrize("what", ABSENT)
@pytest.mark.parametrize("loader", ["auto", "peft"])
def test_what_is_absent_is_named(hub, loader, what):
    repository, options, name = ABSENT[what]
    error = hub(error_of, LOADERS[loader], repository, **options)
    assert error.startswith(f"ValueError: Can't find 'adapter_config.json' at '{repository}'")
    assert name in error


def test_a_base_model_that_is_gone_is_named(hub, tmp_path):
    repository = name_of(tmp_path)
    hub(push_adapter, repository, tmp_path)
    files = dict(hub.server.repository(repository).find("main").files)
    config = json.loads(files["adapter_config.json"].content) | {"base_model_name_or_path": "me/gone"}
    files["adapter_config.json"] = StoredFile(json.dumps(config).encode())
    hub.server.repository(repository).add_commit("main", "another base", files)
    error = hub(error_of, load_auto, repository)
    assert error.startswith("OSError: me/gone is not a local folder and is not a valid model identifier")


def test_a_token_reaches_a_private_adapter_and_its_base(hub, tmp_path):
    base, repository = f"{name_of(tmp_path)}-base", name_of(tmp_path)
    hub(push_base, "ast", base)
    expected = hub(push_adapter, repository, tmp_path, base=base, private=True)
    hub.server.repository(base).private = True
    assert "RepositoryNotFoundError" in hub(error_of, load_without_environment_token, repository)
    assert hub(load_without_environment_token, repository, token=TOKEN) == expected


def test_what_was_loaded_once_loads_without_the_server(hub, tmp_path):
    expected = hub(push_adapter, name_of(tmp_path), tmp_path)
    assert "LocalEntryNotFoundError" in hub(error_of, load_offline, name_of(tmp_path))
    hub(load_auto, name_of(tmp_path))
    assert hub.traffic(load_offline, name_of(tmp_path)) == (expected, [])


@pytest.mark.parametrize("loader", ["auto", "peft", "plain"])
def test_a_subfolder_and_a_revision_load_without_the_server(hub, loader, tmp_path):
    repository = name_of(tmp_path)
    expected = hub(push_adapter, repository, tmp_path, adapter_name="mine")
    hub(tag, repository, "v1")
    hub(push_adapter, repository, tmp_path, adapter_name="mine", seed=3)
    options = {"subfolder": "mine", "revision": "v1"}
    assert hub(LOADERS[loader], repository, **options) == expected
    assert hub.traffic(load_offline, repository, loader, **options) == (expected, [])


def test_local_files_only_asks_the_server_nothing(hub, tmp_path):
    expected = hub(push_adapter, name_of(tmp_path), tmp_path)
    hub(load_auto, name_of(tmp_path))
    actual, requests = hub.traffic(load_auto, name_of(tmp_path), local_files_only=True)
    assert actual == expected
    assert requests == []


# Cards


@pytest.mark.parametrize(
    ("value", "legal"),
    [
        ("me/ast", True),
        ("ast", True),
        ("MIT/ast-finetuned-audioset-10-10-0.4593", True),
        ("/home/me/ast", False),
        ("../ast", False),
        ("out/runs/ast", False),
        ("C:\\ast", False),
        ("", False),
        ("a--b", False),
    ],
)
def test_the_server_tells_names_from_paths(value, legal):
    assert bool(card_problems(f"---\nbase_model: {value!r}\n---\n")) != legal


@pytest.mark.parametrize(
    "way",
    [
        "push_to_hub",
        "upload_folder",
    ],
)
def test_the_card_names_library_and_base_model(hub, way, tmp_path):
    hub(save_adapter, tmp_path)
    hub(UPLOADS[way], tmp_path, name_of(tmp_path))
    metadata = metadata_of(hub.server.files(name_of(tmp_path))["README.md"].decode())
    assert (metadata["library_name"], metadata["base_model"]) == ("peft", "me/ast")


@pytest.mark.parametrize("base", ["in a folder", "without a name"])
def test_a_base_model_that_is_not_on_the_hub_hinders_no_upload(hub, base, tmp_path):
    model = BACKBONES["ast"]()
    if base == "in a folder":
        model.save_pretrained(tmp_path / "base")
        model = type(model).from_pretrained(tmp_path / "base")
    get_peft_model(model, CONFIGS["ipet"]()).save_pretrained(tmp_path / "adapter")
    hub(upload, tmp_path / "adapter", name_of(tmp_path))
    card = hub.server.files(name_of(tmp_path))["README.md"].decode()
    assert metadata_of(card)["library_name"] == "peft" and str(tmp_path) not in card


# Uploads that fail


@pytest.mark.parametrize("way", UPLOADS)
@pytest.mark.parametrize(("point", "how"), [("POST .*/commit/", "error"), ("PUT /lfs/", "drop")])
def test_an_upload_that_fails_leaves_everything_as_it_was(hub, way, point, how, tmp_path):
    folder, scratch, repository = tmp_path / "adapter", tmp_path / "scratch", name_of(tmp_path)
    scratch.mkdir()
    hub(push_adapter, repository, folder)
    hub(save_adapter, folder, seed=3)
    hub.server.objects.clear()  # what the server has already is not sent again
    saved, pushed = read(folder), hub.server.files(repository)
    with hub.server.failing(point, how):
        error = hub(error_of_upload, way, folder, repository, scratch)
    assert {"error": "500 Internal Server Error", "drop": "RemoteProtocolError"}[how] in error
    assert read(folder) == saved and list(scratch.iterdir()) == []
    assert hub.server.files(repository) == pushed

    assert hub(error_of_upload, way, folder, repository, scratch) == ""
    assert read(folder) == saved and list(scratch.iterdir()) == []
    assert pushed[ADAPTER[1]] != saved[ADAPTER[1]] == hub.server.files(repository)[ADAPTER[1]]


# Training


@pytest.mark.parametrize("hub_strategy", ["end", "every_save"])
def test_the_trainer_pushes_adapter_and_feature_extractor(hub, hub_strategy, tmp_path):
    repository = name_of(tmp_path)
    expected = hub(train, tmp_path, repository, hub_strategy)
    messages = [commit.message for commit in hub.server.repository(repository).commits]
    assert ("Training in progress, step 2" in messages) == (hub_strategy == "every_save")
    trained = {path: content for path, content in read(tmp_path).items() if path.startswith("checkpoint-")}
    with hub.server.failing("POST .*/commit/", "error"):
        assert "500 Internal Server Error" in hub(error_of, push_trainer)
    saved = read(tmp_path)
    assert trained.items() <= saved.items()
    assert saved[ADAPTER[1]] == trained[f"checkpoint-4/{ADAPTER[1]}"]

    hub(push_trainer)
    pushed = hub.server.files(repository)
    assert pushed == {path: content for path, content in read(tmp_path).items() if path not in trained}
    assert {*ADAPTER, "README.md", "preprocessor_config.json"} <= pushed.keys()
    assert metadata_of(pushed["README.md"].decode())["base_model"] == "me/ast"
    assert pushed[ADAPTER[1]] == saved[ADAPTER[1]]
    assert hub(load_auto, repository) == expected
    assert hub(load_extractor, repository) == hub(load_extractor, "me/ast")


@pytest.fixture(scope="module")
def sources(running_hub, tmp_path_factory):
    """Model and data of the script's tests, from this machine and from the Hub."""
    for name in ("datasets", "librosa", "matplotlib", "sklearn", "soundfile"):
        pytest.importorskip(name, reason="the examples need it")
    folder = tmp_path_factory.mktemp("sources")
    running_hub(write_sources, folder, "me/tones")
    return {
        "local": ("--model_name_or_path", str(folder / "ast"), "--data_dir", str(folder / "data")),
        "hub": ("--model_name_or_path", "me/ast", "--dataset_name", "me/tones"),
    }


@pytest.mark.parametrize("source", ["local", "hub"])
def test_the_training_script_pushes_its_folder(hub, sources, source, tmp_path):
    repository, out = name_of(tmp_path), tmp_path / "run"
    hub(run_script, out, "--hub_model_id", repository, *sources[source])
    pushed = hub.server.files(repository)
    assert pushed == {path: content for path, content in read(out).items() if not path.startswith("checkpoint-")}
    assert {*ADAPTER, "README.md", "all_results.json", "curves.png", "preprocessor_config.json"} <= pushed.keys()
    metadata = metadata_of(pushed["README.md"].decode())
    facts = {name: metadata.get(name) for name in ("library_name", "base_model", "datasets")}
    expected = {"local": (None, None), "hub": ("me/ast", ["me/tones"])}
    assert facts == dict(zip(facts, ("peft", *expected[source])))
    assert sources["local"][1] not in pushed["README.md"].decode()
    assert hub(run_card_of, repository, tmp_path) in ("high", "low", "middle")


def test_a_script_whose_upload_fails_leaves_its_folder_complete(hub, sources, tmp_path):
    out = tmp_path / "run"
    with hub.server.failing("POST .*/commit/", "error"):
        assert "500 Internal Server Error" in hub(error_of, run_script, out, *sources["local"])
    assert hub.server.files("me/run") == {}  # named after its folder
    hub(upload, out, "me/run")
    assert hub(run_card_of, "me/run", tmp_path) in ("high", "low", "middle")
