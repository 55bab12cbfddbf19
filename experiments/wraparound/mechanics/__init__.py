"""The mechanics of Moshi's ring cache, rotary positions and TTT steps, measured without training anything."""
