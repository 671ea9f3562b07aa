"""The compressed student with the first half of its joint encoder offline on the vision side.

Everything else as in `pretrain_compressed`, so that the two can be compared; name a teacher with
--teacher. The number of deferred layers is ours (docs/deferred-fusion.md), not the paper's.
"""

import dataclasses

from .pretrain_compressed import config as compressed

config = dataclasses.replace(
    compressed, model=dataclasses.replace(compressed.model, deferred_layers=6)
)
"""Six of MiniLM-L12's layers."""
