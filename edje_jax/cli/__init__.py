"""Command lines: thin, with one-line errors and honest exit codes."""
