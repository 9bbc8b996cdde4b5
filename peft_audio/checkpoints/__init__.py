"""Adapter checkpoints: saving, loading and checking them, the base-model settings in them, and their model card."""
