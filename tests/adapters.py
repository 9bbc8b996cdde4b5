"""Adapters with heads of their own over the tiny models, saved as training would leave them."""

from peft import get_peft_model
from tiny import METHODS, randomize

from peft_audio import load_classifier


def save_adapter(folder, base, labels, method="ipet", seed=0, **options):
    """An adapter on the model in the folder `base`, with random weights. Returns its folder's name.

    `options` are those of `load_classifier`: multi_label and max_length.
    """
    model = get_peft_model(load_classifier(base, list(labels), **options), METHODS[method]())
    randomize(model, seed=seed, std=0.3).save_pretrained(folder)
    return str(folder)
