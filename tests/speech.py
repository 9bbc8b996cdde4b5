"""Small transcribed data sets, and tiny recognizers saved with tokenizers, for tests of training scripts."""

import json

import soundfile
import torch
import transformers
from sounds import EXTRACTORS, tone
from tiny import HIDDEN_SIZE, NUM_LAYERS, WAVEFORM, WHISPER


TEXTS = {"high": "a bird", "low": "big dog", "middle": "one cab"}  # by tone
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_transcribed(
    folder, clips=6, splits=("train", "train", "train", "test", "test", "test"), different=6, **rows
):
    """Clips of the tones, `different` ones, with what is said, and a metadata.csv. `rows`: texts of further files."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file_name,transcription,split"]
    for index in range(clips):
        label = list(TEXTS)[index % len(TEXTS)]
        soundfile.write(folder / f"{index}.wav", tone(label, seed=index % different), 16000)
        lines.append(f'{index}.wav,"{TEXTS[label]}",{splits[index]}')
    for name, text in rows.items():
        soundfile.write(folder / f"{name}.wav", tone("low"), 16000)
        lines.append(f'{name}.wav,"{text}",train')
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def whisper_tokenizer():
    """A tokenizer of single letters, without the words that it would have learned."""
    # A Whisper takes the tokens behind the last of these for times.
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    vocab = {token: index for index, token in enumerate(["\u0120", *LETTERS, *LETTERS.upper(), *special])}
    return transformers.WhisperTokenizer(vocab=vocab, merges=[], additional_special_tokens=special[1:])


def save_whisper(folder, **fields):
    tokenizer = whisper_tokenizer()
    end, start = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|startoftranscript|>"])
    ids = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    sizes = {"max_source_positions": 50, "max_target_positions": 257, "vocab_size": len(tokenizer), "init_std": 0.1}
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**WHISPER | ids | sizes | fields))
    model.generation_config.suppress_tokens = model.generation_config.begin_suppress_tokens = None
    model.generation_config.forced_decoder_ids = None
    model.save_pretrained(folder)
    transformers.WhisperProcessor(EXTRACTORS["whisper"](), tokenizer).save_pretrained(folder)
    return folder


def save_encoder(folder, letters=None, kind="Wav2Vec2"):
    """A pretrained encoder of waveforms: bare, or with a CTC head and a tokenizer for these letters."""
    sizes = {"hidden_size": HIDDEN_SIZE, "num_hidden_layers": NUM_LAYERS, "apply_spec_augment": False}
    config = getattr(transformers, f"{kind}Config")(**{**WAVEFORM, **sizes})
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    torch.manual_seed(0)
    if letters is None:
        getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
        extractor.save_pretrained(folder)
        return folder
    vocab = {token: index for index, token in enumerate(["<pad>", "<unk>", "|", *letters])}
    config.vocab_size, config.pad_token_id = len(vocab), 0
    getattr(transformers, f"{kind}ForCTC")(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), bos_token=None, eos_token=None)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    return folder
