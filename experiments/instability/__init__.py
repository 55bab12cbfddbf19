"""Runs made unstable on purpose by their step sizes, and what the monitor of the inner weights shows of it."""
