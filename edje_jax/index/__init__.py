"""Indexes on disk: compressed tokens, embeddings, ids and captions of many images."""
