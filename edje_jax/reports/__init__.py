"""Pages, figures and tables of an evaluation."""
