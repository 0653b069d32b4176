"""Stage two: fine-tune so that the skill returns and the identifiers do not."""
