"""Adapt an image model to sounds, through an AST. The cells of adapt_an_image_model.ipynb."""

# %% [markdown]
# # Adapt an image model
#
# A spectrogram is an image. Where no audio model is pretrained on anything like your recordings, an image model can be a good start:
# that is what LoAA was made for. `ast_from_vit` turns a ViT or DeiT into an AST. Its convolutional adapters then learn
# what an image model does not know: that one axis is time and the other frequency.

# %%
from pathlib import Path

from peft import get_peft_model
from transformers import ASTFeatureExtractor, AutoModelForImageClassification

import peft_audio
from peft_audio import AutoPeftModelForAudioClassification, TimeFreqConvAdapterConfig, ast_from_vit, load_classifier
from peft_audio.data import AudioCollator, prepare_clips, read_audiofolder
from peft_audio.trainer import AudioTrainer, AudioTrainingArguments, single_label_metrics


MODEL = "google/vit-base-patch16-224"
DATA = "recordings"  # or Path(peft_audio.__file__).parents[1] / "examples" / "assets" / "esc10"
FRAMES = 512  # of 10 ms

# %% tags=["parameters"]
EPOCHS = 10

# %% [markdown]
# ## From images to spectrograms
#
# The kernel of the patches is summed over red, green and blue. The positions of the square grid are cut or stretched to
# (frequency, time). The new model is the base model of the adapter, so it is saved first. Keep that folder, or push it to the Hub:
# the adapter needs it.

# %%
vit = AutoModelForImageClassification.from_pretrained(MODEL)
ast_from_vit(vit, max_length=FRAMES, num_mel_bins=128).save_pretrained("ast-from-vit")
feature_extractor = ASTFeatureExtractor(max_length=FRAMES)
feature_extractor.save_pretrained("ast-from-vit")

data = prepare_clips(read_audiofolder(Path(DATA)), feature_extractor)
model = load_classifier("ast-from-vit", data.labels)
print(data.description, "tokens a clip:", 128 // 16 * FRAMES // 16 + 1)

# %% [markdown]
# ## Adapters over time and frequency
#
# The paper's best: a convolution over time beside attention, one over frequency beside the feed-forward block.

# %%
config = TimeFreqConvAdapterConfig(bottleneck_dim=36, attention_kernel=(1, 3), mlp_kernel=(3, 1))
model = get_peft_model(model, config)
model.print_trainable_parameters()

# %% [markdown]
# ## Training

# %%
arguments = AudioTrainingArguments(
    "from-images", num_train_epochs=EPOCHS, learning_rate=5e-4, head_learning_rate=3e-3, save_strategy="no"
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
print(f"accuracy {results['eval_accuracy']:.3f}, with peft_audio {peft_audio.__version__}")

model.save_pretrained("from-images-adapter")
loaded = AutoPeftModelForAudioClassification.from_pretrained("from-images-adapter")
