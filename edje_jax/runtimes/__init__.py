"""Runtimes: implementations of encoding images, embedding texts and scoring pairs."""
