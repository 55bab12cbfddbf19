"""What training with the published video operators' mini-batches does to decoding."""
