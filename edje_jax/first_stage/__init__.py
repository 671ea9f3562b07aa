"""First stages: the nearest embeddings or codes of a query."""
