"""The scan: who finds identifiers, how well, and the inventory of what a corpus holds."""
