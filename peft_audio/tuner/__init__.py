"""The tuner that every method shares: it wraps encoder layers or the input, and runs adapters in a forward pass."""
