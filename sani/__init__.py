"""Audit, erase and repair language models that recite identifiers of people in their data."""
