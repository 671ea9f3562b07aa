"""Compressed tokens on disk, who is a candidate, and the reranker."""
