"""Documents and their spans: what they are, and how every format is read into the same shape."""
