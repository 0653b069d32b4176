"""The rows of the table of model families, by kind; `sani.models.families` is the table."""
