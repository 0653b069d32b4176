"""The review: a person strikes values and corrects drawn documents, which gives a gold sample."""
