"""Which backbone? Four questions, answered from measured evidence and from the model cards, never from scores."""
