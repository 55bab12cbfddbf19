"""Own long recordings as data for training: found, checked, cut into turns, and kept in shards that stream."""
