"""Compares methods on speech recognition: Whisper tiny.en on generated speech with rare names and numbers.

    python method_comparison/recognition_corpus.py CORPUS
    python method_comparison/recognition.py --data_dir CORPUS --output_dir OUT
    python method_comparison/recognition.py --output_dir OUT --table

OUT/results.jsonl gets a line for each run as it ends, so an interrupted comparison goes on where it was, and no run is
repeated. First every learning rate of a row is tried with seed 0. Other seeds train with the one that has the lowest word
error rate on the validation clips. The table is of these runs, on the test clips.
"""

import functools
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import examples_path  # noqa: F401
import torch
from comparison_runs import RunArguments, append_missing, check_file, read_records
from recognition_corpus import TEST, VALIDATION
from recognition_report import RATE_SEED, chosen_rates, print_report
from recognition_rows import BATCH_SIZE, EPOCHS, ROWS, TRAINED, adapted
from train_asr import Encoder, Scorer
from transformers import AutoTokenizer, PrinterCallback, set_seed
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
from transformers.utils import logging

from peft_audio import load_recognizer
from peft_audio.auto.recognizer import SEQ2SEQ
from peft_audio.data import (
    SpeechCollator,
    SpeechData,
    choose_splits,
    load_feature_extractor,
    prepare_transcribed,
    read_audiofolder,
)
from peft_audio.trainer import SpeechTrainer, SpeechTrainingArguments, parameter_counts, saved_bytes
from peft_audio.trainer.command_line import parse_dataclasses
from peft_audio.utils.arguments import run_command


MAX_TOKENS = 48  # more than twice the longest transcription has: a model that repeats itself is stopped
NO_TIMES = "<|notimestamps|>"


@dataclass
class Arguments(RunArguments):
    data_dir: str | None = field(default=None, metadata={"help": "What recognition_corpus.py wrote."})
    model_name_or_path: str = field(default="openai/whisper-tiny.en", metadata={"help": "An English Whisper."})
    methods: list[str] = field(
        default_factory=lambda: list(ROWS), metadata={"help": "Rows of the table.", "choices": list(ROWS)}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of the trainings."})


class Source(NamedTuple):
    """What all runs read: the model, the clips, the folder of their features."""

    model_name: str
    data_dir: str
    cache_dir: str


class Run(NamedTuple):
    """One training (of the rows without a method none): a row, its learning rate, the seed."""

    row: str
    learning_rate: float | None
    seed: int


def main(arguments: list[str] | None = None) -> list[dict]:
    """Trains what is missing and prints the tables. Returns the records of all runs.

    Raises:
        UsageError: the arguments do not fit together.
    """
    (args,) = parse_dataclasses([Arguments], arguments)
    path = Path(args.output_dir) / "results.jsonl"
    if args.table:
        check_file(path)
    else:
        run_missing(args, path)
    records = read_records(path)
    print_report(records)
    return records


def run_missing(args: Arguments, path: Path) -> None:
    """Tries all learning rates with one seed, then trains with the chosen ones and the other seeds."""
    with tempfile.TemporaryDirectory() as cache_dir:
        source = Source(args.model_name_or_path, args.data_dir, cache_dir)
        append = functools.partial(append_missing, path, train_one=functools.partial(train, source), jobs=args.jobs)
        append([Run(name, rate, RATE_SEED) for name in args.methods for rate in ROWS[name].rates], shown="wer")
        rates = chosen_rates(read_records(path))
        trained = [name for name in args.methods if name in TRAINED]
        append([Run(name, rates[name], seed) for seed in args.seeds for name in trained], shown="wer")


def train(source: Source, run: Run) -> dict[str, Any]:
    """Trains one run, and tests it on the test clips and, to choose a rate, on the validation clips. Returns its record."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    row = ROWS[run.row]
    data, tokenizer, extractor = load_data(source, row.seconds)
    set_seed(run.seed)
    model = adapted(load_model(source.model_name, tokenizer, row.seconds), row)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(model, run, (data, extractor), folder)
        started = time.process_time()  # what else the machine does does not count
        outcome = trainer.train() if row.method is not None else None
        seconds = time.process_time() - started
        if outcome is not None:
            trainer.save_model()
        size = saved_bytes(folder)
        parts = {VALIDATION: data.evaluation, TEST: data.test} if chooses_rate(run) else {TEST: data.test}
        tested = {part: tested_on(trainer, dataset, tokenizer) for part, dataset in parts.items()}
    return {
        **run._asdict(),
        "wer": wrong_share(tested[TEST]["counts"]),
        "train_loss": None if outcome is None else outcome.training_loss,
        "seconds": seconds,
        "training_clips": len(data.train),
        "epochs": EPOCHS,
        "checkpoint_bytes": size,
        **parameter_counts(model),
        **tested,
    }


def chooses_rate(run: Run) -> bool:
    return run.seed == RATE_SEED and run.learning_rate is not None


def wrong_share(counts: list[list[int]]) -> float:
    """Wrong words, of all words."""
    return sum(row[0] for row in counts) / sum(row[1] for row in counts)


def tested_on(trainer: SpeechTrainer, dataset: Any, tokenizer: Any) -> dict[str, Any]:
    """By clip: its name, what was heard, and the counts of `Scorer.counts`, of normalized texts."""
    output = trainer.predict(dataset)
    scorer = Scorer(dataset.texts, tokenizer, SEQ2SEQ, "none")
    # It writes numbers as digits. Its list of British spellings, which a tokenizer may have, changes no word of the corpus.
    normalize = EnglishTextNormalizer({})
    pairs = scorer.pairs(output)
    counts = scorer.count_pairs([(normalize(said), normalize(heard)) for said, heard in pairs])
    heard = [heard for _, heard in pairs]
    return {"loss": output.metrics["test_loss"], "names": dataset.names, "heard": heard, "counts": counts.tolist()}


def make_trainer(model: Any, run: Run, parts: tuple, folder: str) -> SpeechTrainer:
    data, extractor = parts
    arguments = SpeechTrainingArguments(
        output_dir=folder,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=run.learning_rate or 0.0,
        seed=run.seed,
        predict_with_generate=True,
        generation_max_length=MAX_TOKENS,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = SpeechTrainer(model, arguments, train_dataset=data.train, data_collator=SpeechCollator(extractor))
    trainer.remove_callback(PrinterCallback)
    return trainer


def load_model(name: str, tokenizer: Any, seconds: int) -> Any:
    model = load_recognizer(name, max_seconds=seconds)
    # Transcriptions are without times; a Whisper whose files do not say this token would have to guess it.
    model.generation_config.no_timestamps_token_id = tokenizer.convert_tokens_to_ids(NO_TIMES)
    return model


@functools.cache  # once a process: its runs share the features
def load_data(source: Source, seconds: int) -> tuple[SpeechData, Any, Any]:
    """The data sets, the tokenizer, and the feature extractor."""
    tokenizer = AutoTokenizer.from_pretrained(source.model_name)
    extractor = load_feature_extractor(source.model_name, max_seconds=seconds)
    splits = choose_splits(read_audiofolder(source.data_dir, text_column="transcription"), None, 0.2, 0)
    encode = Encoder(tokenizer, SEQ2SEQ, tokenizer.convert_tokens_to_ids("<|startoftranscript|>"))
    return (
        prepare_transcribed(splits, extractor, encode, max_seconds=seconds, cache_dir=source.cache_dir),
        tokenizer,
        extractor,
    )


if __name__ == "__main__":
    run_command(main)
