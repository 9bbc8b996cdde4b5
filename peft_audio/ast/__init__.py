"""Audio Spectrogram Transformers: other input lengths and strides, and ASTs made from ViT, DeiT or SSAST weights."""
