"""Adapter checkpoints: saving, loading and checking them, the base-model settings they carry, and their model card."""
