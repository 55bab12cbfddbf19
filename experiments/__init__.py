"""Recipes, data pipeline and the harness that runs them."""

import backbones  # noqa: F401  # settles how moshi is imported, before any module here imports it
