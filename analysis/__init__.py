"""Finished runs to tables, intervals and verdicts. Imports no torch."""
