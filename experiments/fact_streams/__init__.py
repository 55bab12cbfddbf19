"""Endless synthetic token streams with facts in them, and small language models that are trained on them."""
