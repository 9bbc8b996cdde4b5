"""What `pretrain_backbone.py` trains on: generated clips, and statistics of their spectrograms."""
