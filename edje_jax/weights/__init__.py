"""Other people's checkpoints <-> our trees, and the model folder."""
