"""First stages: the nearest embeddings of a query."""
