"""What an adversary finds who does more than ask, beside the same attack on the base."""
