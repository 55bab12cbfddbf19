"""Published dimensions and facts of speech models, a TOML file each, every value with its source. Data, no code."""
