"""The released checkpoint: its files, and the checks on them."""
