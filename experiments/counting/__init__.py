"""What is settled by counting: lines of this repository's adapters, and parameters and rates of published models."""
