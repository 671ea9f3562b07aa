"""Files that belong to no record; each is counted, so that none is skipped silently."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

NAMED = 3
"""Most file names that are kept for each reason."""


@dataclass
class PassedOver:
    """Count and some names of the files that were passed over, by reason."""

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count a file, and keep its name while there are few."""
        self.counts[reason] += 1
        named = self.names.setdefault(reason, [])
        if len(named) < NAMED:
            named.append(name)

    @classmethod
    def sum_of(cls, parts: Iterable["PassedOver"]) -> "PassedOver":
        """Sum of several counts."""
        whole = cls()
        for part in parts:
            whole.counts.update(part.counts)
            for reason, names in part.names.items():
                whole.names[reason] = (whole.names.get(reason, []) + names)[:NAMED]
        return whole

    @property
    def total(self) -> int:
        """Number of files."""
        return self.counts.total()

    def __str__(self) -> str:
        """Summary, as "3 passed over: 2 hidden (.DS_Store, ._a.jpg), 1 .txt (notes.txt)"."""
        listed = []
        for reason, count in self.counts.most_common():
            more = ", ..." if count > NAMED else ""
            listed.append(f"{count:,} {reason} ({', '.join(self.names[reason])}{more})")
        return f"{self.total:,} passed over: {', '.join(listed)}"
