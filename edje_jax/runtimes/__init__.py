"""Lists of any length through the models, in batches of a few fixed shapes."""
