"""Classification heads and poolings that a base model gets before adapters, and trained weighted layer sums."""
