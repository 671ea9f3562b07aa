"""A small trained model, made once."""

from tests.small_runs import trained as trained
