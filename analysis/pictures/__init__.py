"""Pictures of finished runs, each of one panel that a phone can show; and what notebooks call."""
