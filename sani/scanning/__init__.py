"""The inventory: which identifiers a corpus holds."""
