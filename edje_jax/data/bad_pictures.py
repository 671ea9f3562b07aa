"""Pictures that cannot be read: counted, named once, and a reason to stop when there are many."""

import logging
from dataclasses import dataclass, field

log = logging.getLogger(__name__)


class TooManyBadPictures(RuntimeError):
    """More pictures than `max_bad` allows could not be read; the message lists them."""


@dataclass
class BadPictures:
    """Counts the pictures that could not be read, names each once, and gives up in time."""

    total: int
    """Pictures in the set."""
    max_bad: float
    """Share of them that may be bad."""
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, bad: dict[str, str]) -> None:
        """Take note of {picture: reason}.

        Raises:
            TooManyBadPictures: the share is exceeded.
        """
        for name, reason in bad.items():
            if name not in self.reasons:
                log.warning("skipped %s: %s", name, reason)
        self.reasons.update(bad)
        if len(self.reasons) > self.max_bad * self.total:
            listed = "\n".join(f"  {name}: {reason}" for name, reason in self.reasons.items())
            raise TooManyBadPictures(
                f"{len(self.reasons)} of {self.total} pictures could not be read, more than"
                f" --data.max-bad {self.max_bad:g} allows. Mend or remove them, check"
                f" --data.image-root, or raise the limit:\n{listed}"
            )
