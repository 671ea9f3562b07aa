"""What the tests of retrieval share."""

from tests.small_runs import trained as trained
