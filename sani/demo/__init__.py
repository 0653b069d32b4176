"""The demo: an invented clinic and a model that recites its patients."""
