"""What the tests of the programs share."""

from tests.small_disk import small_disk as small_disk
from tests.small_runs import trained as trained
