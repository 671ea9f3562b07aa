"""Search and reranking over HTTP."""
