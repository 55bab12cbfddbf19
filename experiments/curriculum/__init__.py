"""The curriculum: a TTT model trained on 8k, 16k, 32k and 64k positions, each stage from where the one before ended."""
