"""Reports of a run: for people, for machines and for CI."""
