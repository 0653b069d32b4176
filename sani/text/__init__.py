"""From a document to the token ids that a model reads."""
