"""Identify and verify speakers. The cells of verify_speakers.ipynb."""

# %% [markdown]
# # Identify and verify speakers
#
# *Identification*: which of the speakers that were trained on is it? *Verification*: are two recordings of the same speaker, whom the
# model may never have heard? Train for the first, and use what the model computes before its last layer for the second.

# %%
import itertools

import torch
from peft import get_peft_model

from peft_audio import BottleneckAdapterConfig, load_classifier, use_statistics_pooling
from peft_audio.data import AudioCollator, load_feature_extractor, prepare_clips, read_audiofolder
from peft_audio.metrics import equal_error_rate, min_dcf
from peft_audio.trainer import AudioTrainer, AudioTrainingArguments, single_label_metrics


MODEL = "facebook/wav2vec2-base"
DATA = "recordings"  # one folder a speaker

# %% tags=["parameters"]
EPOCHS = 10

# %% [markdown]
# ## Identification
#
# Clips of 3 seconds are enough. Recordings of one session should not be in training and test.

# %%
feature_extractor = load_feature_extractor(MODEL)
data = prepare_clips(read_audiofolder(DATA), feature_extractor, max_seconds=3)
model = load_classifier(MODEL, data.labels)
use_statistics_pooling(model)
model = get_peft_model(model, BottleneckAdapterConfig(bottleneck_dim=64, sites=("attention", "mlp")))

arguments = AudioTrainingArguments(
    "speakers", num_train_epochs=EPOCHS, learning_rate=1e-3, head_learning_rate=3e-3, save_strategy="no"
)
trainer = AudioTrainer(
    model,
    arguments,
    train_dataset=data.train,
    eval_dataset=data.evaluation,
    data_collator=AudioCollator(feature_extractor),
    compute_metrics=single_label_metrics,
)
trainer.train()
results = trainer.test(data.test)
print(f"accuracy {results['eval_accuracy']:.3f}")

# %% [markdown]
# ## Verification
#
# The embedding of a clip is the mean of its last hidden states. Two clips are compared by the cosine. Here all pairs of test clips are
# trials; with your own, use speakers that were not trained on.


# %%
def embed(item):
    """The embedding of one clip, of length 1."""
    inputs = AudioCollator(feature_extractor)([item])
    inputs.pop("labels")
    with torch.inference_mode():
        states = model(**inputs, output_hidden_states=True).hidden_states[-1]
    return torch.nn.functional.normalize(states.mean(1)[0], dim=0)


model.eval()
clips = [data.test[index] for index in range(len(data.test))] + [data.train[index] for index in range(3)]
embeddings = [embed(clip) for clip in clips]
pairs = list(itertools.combinations(range(len(clips)), 2))
scores = [float(embeddings[first] @ embeddings[second]) for first, second in pairs]
same = [int(clips[first]["labels"] == clips[second]["labels"]) for first, second in pairs]
print(f"equal error rate {equal_error_rate(scores, same):.3f}, minDCF {min_dcf(scores, same):.3f}")

# %% [markdown]
# Models with a head for embeddings, such as `microsoft/wavlm-base-sv`, are adapted in the same way. `load_xvector` gives them a head for
# your speakers, and `AutoPeftModelForAudioXVector` loads their adapters. With data in the layout of VoxCeleb1,
# `python examples/speaker_verification.py train` does all of it, and scores a list of trials.

# %%
model.save_pretrained("speakers-adapter")
feature_extractor.save_pretrained("speakers-adapter")
