"""Search: candidates of the first stage, reranked by a model that scores pairs, or by two."""
