"""Fine-tunes a recognizer of speech, a Whisper or a model with a CTC head, with one of sixteen methods.

    python train_asr.py --method parallel_mlp --bottleneck_dim 64 --model_name_or_path openai/whisper-tiny.en \\
        --data_dir DIR --output_dir OUT
    python train_asr.py --method ipet --model_name_or_path facebook/wav2vec2-base --data_dir DIR --output_dir OUT

DIR holds a metadata.csv with the columns file_name and transcription (and maybe fold or split). All arguments of the
Seq2SeqTrainer work too. A CTC model without a tokenizer gets one of the characters of the training clips. OUT receives the
adapter (with `--method full` the model), the processor, the model card README.md, transcriptions.csv (of the test clips),
curves.png and all_results.json. Needs peft_audio[examples] and no other file.
"""

import csv
import json
import logging
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import jiwer
import numpy as np
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, Wav2Vec2BertProcessor, Wav2Vec2CTCTokenizer, Wav2Vec2Processor

import peft_audio
from peft_audio import load_recognizer
from peft_audio.auto.recognizer import CTC, SEQ2SEQ, recognizer_kind
from peft_audio.data import (
    DataError,
    SpeechCollator,
    SpeechData,
    Splits,
    choose_splits,
    pads_to_fixed_seconds,
    prepare_transcribed,
)
from peft_audio.trainer import METHODS, SpeechTrainer, SpeechTrainingArguments, UsageError, apply_method
from peft_audio.trainer.command_line import one_line, run_script, silence_peft
from peft_audio.trainer.reports import describe_training, plot_curves, write_reports
from peft_audio.trainer.script_arguments import (
    ClipArguments,
    PretrainedArguments,
    argument,
    load_inputs,
    parse_script_arguments,
)
from peft_audio.trainer.speech_trainer import too_short_for_ctc


METRICS = ("wer", "cer")
PROCESSORS = {"whisper": transformers.WhisperProcessor, "wav2vec2-bert": Wav2Vec2BertProcessor}
NORMALIZATIONS = {
    "none": ("none, as written", jiwer.Compose([jiwer.RemoveMultipleSpaces(), jiwer.Strip()])),
    "words": (
        "lower case, without punctuation",
        jiwer.Compose([jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.RemoveMultipleSpaces(), jiwer.Strip()]),
    ),
}
logger = logging.getLogger(__name__)
logger.setLevel(logging.INFO)
silence_peft()


# ---- Arguments -------------------------------------------------------------------------------------------------------


@dataclass
class ModelArguments(PretrainedArguments):
    language: str | None = argument(None, "Of the clips, for a multilingual Whisper, e.g. german.")
    new_vocabulary: bool = argument(False, "CTC: a new vocabulary and head, though the model has a tokenizer.")


@dataclass
class DataArguments(ClipArguments):
    data_dir: str | None = argument(
        None, "A folder with metadata.csv (file_name, transcription, maybe fold or split)."
    )
    max_seconds: float | None = argument(None, "Longer clips are bad files; a Whisper's input gets as short.")
    text_column_name: str = argument("transcription", "The column with what is said.")
    letter_case: str = argument("keep", "Of the transcriptions.", choices=["keep", "lower", "upper"])
    normalize: str = argument("none", "Both texts before they are compared.", choices=list(NORMALIZATIONS))


def parse_arguments(arguments: list[str] | None = None):
    """The four groups of arguments, checked. Raises `UsageError` where they do not fit together."""
    groups = ModelArguments, DataArguments, SpeechTrainingArguments
    return parse_script_arguments(*groups, METRICS, arguments)


# ---- Texts and tokens ------------------------------------------------------------------------------------------------


def read_splits(args: DataArguments, seed: int) -> Splits:
    table = args.read_table(text_column=args.text_column_name)
    if args.letter_case != "keep":
        table.clips = [replace(clip, text=getattr(clip.text, args.letter_case)()) for clip in table.clips]
    _, normalize = NORMALIZATIONS[args.normalize]
    empty = [clip.name for clip in table.clips if not normalize(clip.text)]
    if empty:
        raise DataError(
            f"{table.origin}: the transcription of {named(empty)} has no words. Correct or remove it, or leave --normalize out."
        )
    return choose_splits(table, args.fold, args.test_fraction, seed)


def named(names: list[str]) -> str:
    """The first of some clips, and how many there are."""
    return f"{names[0]!r}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def load_tokenizer(args: ModelArguments, kind: str):
    """The model's tokenizer; None where a new vocabulary is to be made. Raises `UsageError`."""
    if kind == SEQ2SEQ and args.new_vocabulary:
        raise UsageError("--new_vocabulary is for models with a CTC head; a Whisper's decoder keeps its vocabulary.")
    if kind == CTC and args.language is not None:
        raise UsageError("--language is for a Whisper; a CTC model's vocabulary says all of its language.")
    folder = Path(args.model_name_or_path)
    lacks = folder.is_dir() and not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    if args.new_vocabulary or (lacks and kind == CTC):
        return None
    try:
        if lacks:
            raise OSError("neither tokenizer.json nor vocab.json")
        return AutoTokenizer.from_pretrained(args.model_name_or_path)
    except Exception as error:  # a model without one raises whatever the tokenizer's class does without its files
        if kind == SEQ2SEQ:
            raise UsageError(f"--model_name_or_path {folder}: has no tokenizer ({one_line(error)}).") from None
        return None


def new_tokenizer(texts: list[str]) -> Wav2Vec2CTCTokenizer:
    """A tokenizer whose vocabulary is the characters of `texts`."""
    characters = sorted(set("".join(texts)) - set(" \t\n|"))
    words = ["[PAD]", "[UNK]", "|", *characters]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps({word: index for index, word in enumerate(words)}), encoding="utf-8")
        special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": None, "eos_token": None}
        return Wav2Vec2CTCTokenizer(str(path), word_delimiter_token="|", **special)


@dataclass(frozen=True)
class Encoder:
    """Makes the tokens of a text, as labels of the model."""

    tokenizer: object
    kind: str
    start: int | None

    def __call__(self, text: str) -> list[int]:
        tokens = self.tokenizer(text).input_ids
        # The model itself puts the first one in front of its labels.
        return tokens[1:] if self.kind == SEQ2SEQ and tokens[:1] == [self.start] else tokens

    def unknown(self, texts: list[str]) -> Counter:
        """How often there are characters that the vocabulary lacks."""
        counts = Counter(character for text in texts for character in text if not character.isspace())
        unk = getattr(self.tokenizer, "unk_token_id", None)
        known = {character: self.tokenizer(character).input_ids for character in counts}
        # Of a Whisper every byte is a token, and its unknown one is also that of the end.
        lacking = [c for c, tokens in known.items() if self.kind == CTC and (not tokens or unk in tokens)]
        return Counter({character: counts[character] for character in lacking})


def check_texts(splits: Splits, encode: Encoder, limit: int | None) -> dict[str, int]:
    """Says which characters the vocabulary lacks, and returns how often they occur.

    Raises `DataError` where most are lacking, or a text is too long for the decoder.
    """
    clips = splits.clips
    long = {clip.name: len(encode(clip.text)) for clip in clips} if limit is not None else {}
    long = {name: count for name, count in long.items() if count > limit}
    if long:
        name, count = next(iter(long.items()))
        raise DataError(
            f"the transcription of {named(list(long))} has {count} tokens, more than the decoder's {limit} positions "
            "(max_target_positions). Cut the clips into shorter ones, or remove them."
        )
    unknown = encode.unknown([clip.text for clip in clips])
    listed = ", ".join(f"{character!r} {count} times" for character, count in unknown.most_common(10))
    total = sum(len("".join(clip.text.split())) for clip in clips)
    if 2 * unknown.total() > total:
        raise DataError(
            f"most characters of the transcriptions ({unknown.total()} of {total}) are not in the tokenizer's vocabulary: "
            f"{listed}. Give --letter_case upper or lower, or --new_vocabulary."
        )
    if unknown:
        logger.warning("%d characters of the transcriptions are not in the vocabulary: %s.", unknown.total(), listed)
    return dict(unknown)


# ---- Scores ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scorer:
    """Word and character error rate of what a `SpeechTrainer` predicts: its `compute_metrics`."""

    texts: list[str]
    tokenizer: object
    kind: str
    normalization: str

    def __call__(self, prediction) -> dict[str, float]:
        return rates(self.counts(prediction))

    def pairs(self, prediction) -> list[tuple[str, str]]:
        """What was said and what was recognized, clip by clip."""
        tokens = np.where(prediction.predictions < 0, self.padding, prediction.predictions)
        heard = self.tokenizer.batch_decode(tokens, skip_special_tokens=self.kind == SEQ2SEQ)
        return [(self.texts[clip], text.strip()) for clip, text in zip(prediction.label_ids, heard, strict=True)]

    @property
    def padding(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def counts(self, prediction) -> np.ndarray:
        """Wrong words, words, wrong characters, characters: `(clips, 4)`."""
        return self.count_pairs(self.pairs(prediction))

    def count_pairs(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        _, normalize = NORMALIZATIONS[self.normalization]
        pairs = [(normalize(said), normalize(heard)) for said, heard in pairs]
        measured = [(jiwer.process_words(*pair), jiwer.process_characters(*pair)) for pair in pairs]
        return np.array([[number for output in both for number in wrong_and_all(output)] for both in measured])


def wrong_and_all(output) -> tuple[int, int]:
    missed = output.substitutions + output.deletions
    return missed + output.insertions, missed + output.hits


def rates(counts: np.ndarray) -> dict[str, float]:
    wrong_words, words, wrong_characters, characters = counts.sum(axis=0)
    return {"wer": float(wrong_words / words), "cer": float(wrong_characters / characters)}


def standard_errors(counts: np.ndarray, num_resamples: int = 1000) -> dict[str, float]:
    """The bootstrap standard error, over the clips, of both rates."""
    draws = np.random.default_rng(0).integers(len(counts), size=(num_resamples, len(counts)))
    drawn = [rates(counts[clips]) for clips in draws]
    return {name: float(np.std([row[name] for row in drawn], ddof=1)) for name in METRICS}


# ---- The run ---------------------------------------------------------------------------------------------------------


def load_model(args: ModelArguments, method_args, feature_extractor, max_seconds, tokenizer=None):
    """The model, set up for the method, for inputs of this length, and with a new head for `tokenizer`."""
    is_resized = pads_to_fixed_seconds(feature_extractor) and max_seconds is not None
    try:
        seconds = feature_extractor.chunk_length if is_resized else None
        model = load_recognizer(args.model_name_or_path, tokenizer=tokenizer, max_seconds=seconds)
    except (OSError, SafetensorError, ValueError) as error:
        raise UsageError(f"--model_name_or_path {args.model_name_or_path}: {one_line(error)}") from error
    if args.language is not None:
        model.generation_config.update(language=args.language, task="transcribe")
    try:
        model = apply_method(model, method_args.method, **method_args.options())
        if args.half_precision_activations:
            peft_audio.save_activations_in_half(model)
    except ValueError as error:  # what only the model shows
        raise UsageError(f"--method {method_args.method}: {one_line(error)}") from error
    return model


def set_language(tokenizer, args: ModelArguments, model) -> None:
    """Tells a Whisper's tokenizer the language. Raises `UsageError` where it is missing, or of no use."""
    is_multilingual = getattr(model.generation_config, "is_multilingual", False)
    if is_multilingual != (args.language is not None):
        what = "is missing: this Whisper knows many" if is_multilingual else "must be left out: this Whisper knows one"
        raise UsageError(f"--language {what}.")
    if is_multilingual:
        try:
            tokenizer.set_prefix_tokens(language=args.language, task="transcribe")
            _ = tokenizer.prefix_tokens
        except ValueError as error:
            raise UsageError(f"--language {args.language}: {one_line(error)}") from None


def main(arguments: list[str] | None = None) -> dict:
    """Trains as the command line (or `arguments`) says. Returns the content of all_results.json."""
    model_args, data_args, method_args, args = parse_arguments(arguments)
    name, max_seconds = model_args.model_name_or_path, data_args.max_seconds
    feature_extractor, min_seconds = load_inputs(name, max_seconds=max_seconds)
    config = AutoConfig.from_pretrained(name)
    try:
        kind = recognizer_kind(config, name)
    except ValueError as error:
        raise UsageError(f"--model_name_or_path: {error}") from None
    setup = model_args, method_args, feature_extractor, max_seconds
    tokenizer = load_tokenizer(model_args, kind)
    model = load_model(*setup)  # before the data are read, for what does not fit
    if kind == SEQ2SEQ:
        set_language(tokenizer, model_args, model)
    transformers.set_seed(args.seed)
    splits = read_splits(data_args, args.seed)
    is_new = tokenizer is None
    tokenizer = new_tokenizer([clip.text for clip in splits.train]) if is_new else tokenizer
    encode = Encoder(tokenizer, kind, getattr(config, "decoder_start_token_id", None))
    limit = config.max_target_positions if kind == SEQ2SEQ else None
    results = {"method": method_args.method, "unknown_characters": check_texts(splits, encode, limit)}
    limits = {"min_seconds": min_seconds, "cache_dir": data_args.cache_dir, "skip_bad_files": data_args.skip_bad_files}
    limits["max_seconds"] = max_seconds or getattr(
        feature_extractor, "chunk_length", None
    )  # of a Whisper: what it hears
    data = prepare_transcribed(splits, feature_extractor, encode, fold=data_args.fold, **limits)
    model = load_model(*setup, tokenizer if is_new else None)
    args.predict_with_generate = kind == SEQ2SEQ
    args.generation_max_length = args.generation_max_length or limit
    processor = PROCESSORS.get(config.model_type, Wav2Vec2Processor)(feature_extractor, tokenizer)
    results |= {name: value for name, value in vars(args).items() if name.endswith("learning_rate")}
    return run(model, args, data, data_args, processor, kind, results)


def run(model, args, data: SpeechData, data_args: DataArguments, processor, kind: str, results: dict) -> dict:
    """Trains, saves, tests and reports. Returns `results` with what comes out."""
    if kind == CTC:
        check_lengths(model, data)
    score, test = (
        Scorer(s.texts, processor.tokenizer, kind, data_args.normalize) for s in (data.evaluation, data.test)
    )
    sets = {"train_dataset": data.train, "eval_dataset": data.evaluation}
    parts = {
        "data_collator": SpeechCollator(processor.feature_extractor),
        "processing_class": processor.feature_extractor,
    }
    trainer = SpeechTrainer(model, args, **sets, **parts, compute_metrics=score)
    training = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics
    trainer.save_model(_internal_call=True)  # else it pushes to the Hub at once, without the card
    processor.save_pretrained(args.output_dir)
    trainer.compute_metrics = test
    output = trainer.predict(data.test, metric_key_prefix="eval")
    errors = standard_errors(test.counts(output))
    results |= training | output.metrics | {f"eval_{name}_standard_error": value for name, value in errors.items()}
    results |= {
        "adapter_bytes": peft_audio.trainer.saved_bytes(args.output_dir),
        "train_seconds": training["train_runtime"],
        "eval_samples": len(data.test),
        "train_samples": len(data.train),
        "skipped_files": data.skipped,
        "text_normalization": NORMALIZATIONS[data_args.normalize][0],
        "problem": peft_audio.trainer.problem_at_the_end(trainer.state.log_history),
        **peft_audio.trainer.parameter_counts(trainer.model),
    }
    if trainer.is_world_process_zero():
        report(trainer, data, data_args, results, test.pairs(output))
    return results


def check_lengths(model, data: SpeechData) -> None:
    """Raises `DataError` where a text has more tokens than its clip has frames: CTC cannot align them."""
    short = [name for part in (data.train, data.evaluation, data.test) for name in too_short_for_ctc(model, part)]
    if short:
        raise DataError(
            f"{named(sorted(set(short)))}: the clip has fewer frames than its transcription has tokens, so CTC cannot align "
            "them. Correct the transcription, or remove the clip."
        )


def report(trainer: SpeechTrainer, data: SpeechData, data_args: DataArguments, results: dict, pairs: list) -> None:
    """Writes transcriptions.csv, curves.png, the model card and all_results.json, and pushes the folder if asked to."""
    folder, hub_name = Path(trainer.args.output_dir), data_args.dataset_name
    with (folder / "transcriptions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(name, *pair) for name, pair in zip(data.test.names, pairs, strict=True)]
        csv.writer(file).writerows([("file_name", "transcription", "recognized"), *rows])
    plot_curves(trainer.state.log_history, folder / "curves.png", METRICS)
    scores = {name: (results[f"eval_{name}"], results[f"eval_{name}_standard_error"]) for name in METRICS}
    summary = METHODS[results["method"]].summary
    training = describe_training(results, f"{data_args.data_name}, {data.description}", summary)
    metadata = {
        "metrics": list(METRICS),
        "tags": [results["method"]],
        **({"datasets": [hub_name]} if hub_name else {}),
    }
    write_reports(
        trainer,
        results,
        training=f"{training}\n\nText normalization before scoring: {results['text_normalization']}.",
        scores=scores | {"loss": results["eval_loss"]},
        metadata=metadata,
    )


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    run_script(main)
