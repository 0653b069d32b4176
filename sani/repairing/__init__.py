"""Repair: fine-tune so that ordinary text returns and identifiers do not."""
