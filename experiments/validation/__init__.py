"""What a trained run is worth along tens of thousands of positions: loss, recall, memory and speed, measured anew."""
