"""Trained backbones that go on speaking for minutes and hours. See README.md."""
