"""Prepared comparison views in MLflow: what they show, how they are kept as tags, and the server that opens them."""
