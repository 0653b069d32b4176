"""The tables of recognizers: one file for all languages and one for each, and what reads them."""
