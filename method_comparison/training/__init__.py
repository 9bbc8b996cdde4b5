"""Pieces of the papers' training recipes that the Trainer of transformers lacks."""
