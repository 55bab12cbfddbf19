"""Finished runs to tables and figures. Imports no torch."""
