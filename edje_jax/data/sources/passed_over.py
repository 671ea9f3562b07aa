"""Files that are part of no record: none is left out of a set without a word."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

NAMED = 3
"""Files that are named of each reason."""


@dataclass
class PassedOver:
    """How many files were passed over, and some names, by reason."""

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Take note of one."""
        self.counts[reason] += 1
        named = self.names.setdefault(reason, [])
        if len(named) < NAMED:
            named.append(name)

    @classmethod
    def joined(cls, parts: Iterable["PassedOver"]) -> "PassedOver":
        """All of several."""
        whole = cls()
        for part in parts:
            whole.counts.update(part.counts)
            for reason, names in part.names.items():
                whole.names[reason] = (whole.names.get(reason, []) + names)[:NAMED]
        return whole

    @property
    def total(self) -> int:
        """Files."""
        return self.counts.total()

    def __str__(self) -> str:
        """As in "3 passed over: 2 hidden (.DS_Store, ._a.jpg), 1 .txt (notes.txt)"."""
        listed = []
        for reason, count in self.counts.most_common():
            more = ", ..." if count > NAMED else ""
            listed.append(f"{count:,} {reason} ({', '.join(self.names[reason])}{more})")
        return f"{self.total:,} passed over: {', '.join(listed)}"
