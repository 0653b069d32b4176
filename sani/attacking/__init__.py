"""Attacks of an adversary who does more than prompt, each beside the same attack on the base."""
