"""Streams without an end: what the age of a TTT state does to a model that was trained on short ones."""
