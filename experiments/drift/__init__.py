"""How rounding of a TTT state grows along a stream, and whether it ever breaks a trained model."""
