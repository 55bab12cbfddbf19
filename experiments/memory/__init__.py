"""Memory of a conversation: bytes computed from the published dimensions, checked against bytes really held."""
