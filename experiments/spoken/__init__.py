"""Spoken conversations: what is trained on them, how it is measured, and what is left behind, for every backbone."""
