"""What happens when a streaming model outlives its attention cache: mechanics measured, then models trained."""
