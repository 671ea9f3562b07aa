"""Numbers of retrieval: metrics, protocols, intervals. Functions in, not models."""
