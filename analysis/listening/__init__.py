"""Blind listening tests: people compare what systems said, on a page of this machine, and their answers are counted."""
