"""Numbers of retrieval: measures, protocols, intervals, of arrays and functions, not of models."""
