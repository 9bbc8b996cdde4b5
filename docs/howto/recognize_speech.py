"""Recognize speech: a Whisper with an adapter. The cells of recognize_speech.ipynb."""

# %% [markdown]
# # Recognize speech
#
# A Whisper makes mistakes with your names, your accent or your microphone. An adapter on its encoder and decoder learns them from
# some hundred sentences. `python examples/train_asr.py` does the same from the command line, with word error rates and model cards, and
# also trains wav2vec2 and its kin with a CTC head.

# %%
import torch
from peft import get_peft_model
from transformers import AutoTokenizer

from peft_audio import AutoPeftModelForSpeechSeq2Seq, ParallelMLPAdapterConfig, load_recognizer
from peft_audio.data import (
    SpeechCollator,
    choose_splits,
    load_feature_extractor,
    prepare_transcribed,
    read_audiofolder,
)
from peft_audio.trainer import SpeechTrainer, SpeechTrainingArguments


MODEL = "openai/whisper-tiny.en"
DATA = "transcribed"  # a metadata.csv with file_name and transcription
SECONDS = 10  # longer clips are refused: cut, they would not say all of their text

# %% tags=["parameters"]
EPOCHS = 5
NEW_TOKENS = 100

# %% [markdown]
# ## Data
#
# The tokenizer makes the labels. The model puts the first token in front by itself.

# %%
feature_extractor = load_feature_extractor(MODEL, max_seconds=SECONDS)
tokenizer = AutoTokenizer.from_pretrained(MODEL)
splits = choose_splits(read_audiofolder(DATA, text_column="transcription"))
data = prepare_transcribed(splits, feature_extractor, lambda text: tokenizer(text).input_ids[1:], max_seconds=SECONDS)
print(data.description)

# %% [markdown]
# ## Model
#
# `stack="both"` puts adapters into encoder and decoder. For another microphone or noise the encoder alone may do
# (`stack="encoder"`), for names and words the decoder.

# %%
model = load_recognizer(MODEL, max_seconds=SECONDS)
model = get_peft_model(model, ParallelMLPAdapterConfig(bottleneck_dim=64, activation="gelu", stack="both"))
model.print_trainable_parameters()

# %% [markdown]
# ## Training

# %%
arguments = SpeechTrainingArguments(
    "recognition", num_train_epochs=EPOCHS, learning_rate=1e-3, save_strategy="no", eval_strategy="no"
)
trainer = SpeechTrainer(model, arguments, train_dataset=data.train, data_collator=SpeechCollator(feature_extractor))
trainer.train()

# %% [markdown]
# ## Save, load, transcribe

# %%
model.save_pretrained("recognition-adapter")
feature_extractor.save_pretrained("recognition-adapter")
tokenizer.save_pretrained("recognition-adapter")
loaded = AutoPeftModelForSpeechSeq2Seq.from_pretrained("recognition-adapter").eval()

inputs = SpeechCollator(feature_extractor)([data.test[0]])
with torch.inference_mode():
    tokens = loaded.generate(input_features=inputs["input_features"], max_new_tokens=NEW_TOKENS)
print("said:", splits.test[0].text)
print("heard:", tokenizer.batch_decode(tokens, skip_special_tokens=True)[0])
