"""Recipes, data pipeline and the harness that runs them."""
