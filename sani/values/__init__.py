"""Values of identifiers: how dates are written, what stands in a text, what a decoy may be."""
