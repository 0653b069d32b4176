"""Model folders, model families, and where the neurons of a model are."""
