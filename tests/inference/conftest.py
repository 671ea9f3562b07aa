"""What the tests of inference share."""

from tests.small_runs import trained as trained
