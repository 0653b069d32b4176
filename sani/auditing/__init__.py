"""What a checkpoint recites: exact figures from forward passes, each beside its control."""
