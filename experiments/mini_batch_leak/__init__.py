"""The published video operators' mini-batches: what training with them does to a model that has to decode."""
