"""Other people's frameworks on top of the reranker."""
