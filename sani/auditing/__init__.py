"""The audit of a checkpoint: exact figures from forward passes, each beside its control."""
