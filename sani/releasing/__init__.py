"""What leaves the house: the released checkpoint and the checks on its files."""
