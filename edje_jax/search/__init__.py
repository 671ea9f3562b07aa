"""Search: candidates of the first stage, reranked by the joint encoder."""
