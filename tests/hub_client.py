"""What test_hub.py has done in the process that talks to the server."""

import contextlib
import csv
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import huggingface_hub
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import BACKBONES, METHODS, make_inputs, randomize
from transformers import (
    ASTFeatureExtractor,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from peft_audio import AutoPeftModelForAudioClassification


LABELS = ["rain", "wind", "bell", "dog", "saw"]
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
CONFIGS = METHODS | {"lora": lambda **k: LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"], **k)}
EXAMPLES = Path(__file__).parent / "examples"


elsewhere = []  # connections and look-ups that were refused


def connect_only_to(port):
    def watch(event, arguments):
        if event == "socket.getaddrinfo":
            place = arguments[:2]
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            place = arguments[1][:2]
        else:
            return
        if place != ("127.0.0.1", port):
            elsewhere.append(place)
            raise PermissionError(f"no connection to {place}")

    sys.addaudithook(watch)


def connections_elsewhere():
    """The places noted since the last call."""
    places = list(elsewhere)
    elsewhere.clear()
    return places


def error_of(function, *arguments, **options):
    """The error that the function raises, and all those behind it, as text; empty if there is none."""
    try:
        function(*arguments, **options)
    except Exception as raised:
        chain, error = [], raised
        while error is not None:
            chain.append(f"{type(error).__name__}: {error}")
            error = error.__cause__ or error.__context__
        return "\n".join(chain)
    return ""


@contextlib.contextmanager
def working_in(folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def logits(model, backbone="ast"):
    with torch.no_grad():
        return model.eval()(**make_inputs(backbone)).logits.tolist()


def load_base(name, **options):
    label2id = {label: index for index, label in enumerate(LABELS)}
    return AutoModelForAudioClassification.from_pretrained(
        name, id2label=dict(enumerate(LABELS)), label2id=label2id, **options
    )


def push_base(backbone, repository, **options):
    BACKBONES[backbone](**options).push_to_hub(repository)
    if backbone == "ast":
        ASTFeatureExtractor(num_mel_bins=36, max_length=46).push_to_hub(repository)


def make_adapter(backbone="ast", method="ipet", base=None, revision=None, seed=2, adapter_name="default"):
    model = load_base(base or f"me/{backbone}", revision=revision)
    model = get_peft_model(model, CONFIGS[method](revision=revision), adapter_name=adapter_name)
    return randomize(model, seed=seed)


def push_adapter(repository, folder, backbone="ast", branch=None, private=None, **options):
    model = make_adapter(backbone, **options)
    model.save_pretrained(folder)
    model.push_to_hub(repository, revision=branch, private=private)
    return logits(model, backbone)


def save_adapter(folder, **options):
    make_adapter(**options).save_pretrained(folder)


def tag(repository, name):
    HfApi().create_tag(repository, tag=name)


def push_again(folder, repository):
    PeftModel.from_pretrained(load_base("me/ast"), folder).push_to_hub(repository)


def upload(folder, repository):
    api = HfApi()
    api.create_repo(repository, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=folder)


UPLOADS = {"push_to_hub": push_again, "upload_folder": upload}


def error_of_upload(way, folder, repository, scratch):
    """The error of an upload whose temporary and working folders are in `scratch`; its retries do not wait."""
    with working_in(scratch), mock.patch.object(tempfile, "tempdir", str(scratch)), mock.patch.object(time, "sleep"):
        return error_of(UPLOADS[way], folder, repository)


def load_auto(repository, backbone="ast", **options):
    model = AutoPeftModelForAudioClassification.from_pretrained(repository, **options)
    assert list(model.config.id2label.values()) == LABELS
    assert list(model.peft_config) == [options.get("adapter_name", "default")]
    return logits(model, backbone)


def load_peft(repository, backbone="ast", **options):
    return logits(PeftModel.from_pretrained(load_base(f"me/{backbone}"), repository, **options), backbone)


def load_plain(repository, **options):
    model = load_base("me/ast")
    model.load_adapter(repository, adapter_kwargs=options)
    return logits(model)


LOADERS = {"auto": load_auto, "peft": load_peft, "plain": load_plain}


def load_without_environment_token(repository, **options):
    with mock.patch.dict(os.environ):
        del os.environ["HF_TOKEN"]
        return load_auto(repository, **options)


def load_offline(repository, loader="auto", **options):
    with mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True):
        return LOADERS[loader](repository, **options)


def download(repository):
    names = HfApi().list_repo_files(repository)
    return {name: Path(huggingface_hub.hf_hub_download(repository, name)).read_bytes() for name in names}


def load_extractor(repository):
    return AutoFeatureExtractor.from_pretrained(repository).to_dict()


trainers = []


def train(folder, repository, hub_strategy):
    clips = make_inputs("ast", batch_size=8)["input_values"]
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        push_to_hub=True,
        hub_model_id=repository,
        hub_strategy=hub_strategy,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(
        model=get_peft_model(load_base("me/ast"), CONFIGS["ipet"]()),
        args=arguments,
        train_dataset=[{"input_values": clip, "labels": index % len(LABELS)} for index, clip in enumerate(clips)],
        data_collator=default_data_collator,
        processing_class=AutoFeatureExtractor.from_pretrained("me/ast"),
    )
    trainer.train()
    trainers[:] = [trainer]
    return logits(trainer.model)


def push_trainer():
    trainers[0].push_to_hub()


def write_sources(folder, repository):
    """A model and the examples' tones in `folder`, and the tones as a table on the Hub."""
    sys.path.append(str(EXAMPLES))
    import datasets
    from sounds import save_ast, write_tones

    save_ast(folder / "ast")
    tones = write_tones(folder / "data")
    rows = list(csv.DictReader((tones / "metadata.csv").open()))
    columns = {name: [row[name] for row in rows] for name in ("label", "fold")}
    columns["audio"] = [{"bytes": (tones / row["file_name"]).read_bytes(), "path": row["file_name"]} for row in rows]
    table = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio(decode=False))
    table.class_encode_column("label").to_parquet(folder / "table" / "train.parquet")
    HfApi().create_repo(repository, repo_type="dataset")
    HfApi().upload_folder(repo_id=repository, repo_type="dataset", folder_path=folder / "table")


def run_script(out, *more):
    import datasets
    from train_classification import main

    options = "--fold 1 --method ipet --bottleneck_dim 4 --num_train_epochs 1 --disable_tqdm True --use_cpu True"
    with mock.patch.object(datasets.config, "USE_PARQUET_EXPORT", False):  # it asks another server
        main([*options.split(), "--push_to_hub", "--output_dir", str(out), *more])


def run_card_of(repository, folder):
    """Run the code of a repository's card in `folder`. Returns what it prints."""
    import soundfile
    from sounds import tone

    card = huggingface_hub.ModelCard.load(repository).content
    soundfile.write(folder / "clip.wav", tone("low"), 16000)
    with working_in(folder), contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(card.split("```python\n")[1].split("```")[0], "README.md", "exec"), {})
    return printed.getvalue().strip()
