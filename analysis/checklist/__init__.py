"""What must be known of a trained model before it is launched: filled from its runs, and what is missing is said."""
