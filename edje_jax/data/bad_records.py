"""Records that cannot be used: counted, named once, and a reason to stop when there are many.

A record is bad when its source left it out at opening, when its image cannot be read, or when
captions of it cannot be used; an image that loses some of its captions keeps the others.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edje_jax.types import BadRecord, Checked, Source

log = logging.getLogger(__name__)

LISTED = 50
"""Bad records that a message lists."""


class TooManyBadRecords(RuntimeError):
    """More records than `max_bad` allows are bad; the message lists them."""


@dataclass
class BadRecords:
    """Counts the bad records of a set, names each once, and gives up in time."""

    total: int
    """Records in the set."""
    max_bad: float
    """Share of them that may be bad."""
    reasons: dict[str, str] = field(default_factory=dict)

    @classmethod
    def after(cls, left_out: Sequence[BadRecord], images: int, max_bad: float) -> "BadRecords":
        """The count for so many images, which begins with what their source left out.

        Raises:
            TooManyBadRecords: that alone exceeds the share.
        """
        bad = cls(images + len(left_out), max_bad)
        bad.add(dict(left_out))
        return bad

    def add(self, bad: Mapping[str, str]) -> None:
        """Take note of {record: reason}.

        Raises:
            TooManyBadRecords: the share is exceeded.
        """
        for name, reason in bad.items():
            if name not in self.reasons:
                log.warning("skipped %s: %s", name, reason)
        self.reasons.update(bad)
        if are_too_many(len(self.reasons), self.total, self.max_bad):
            listed = [f"  {name}: {reason}" for name, reason in self.reasons.items()]
            if len(listed) > LISTED:
                listed[LISTED:] = [f"  and {len(listed) - LISTED:,} more"]
            raise TooManyBadRecords(
                f"{len(self.reasons)} of {self.total} records are bad, more than"
                f" --data.max-bad {self.max_bad:g} (--max-bad outside training) allows. Mend or"
                " remove them, check --data.image-root, or raise the limit:\n" + "\n".join(listed)
            )


def are_too_many(bad: int, total: int, max_bad: float) -> bool:
    """Whether so many bad records are more than their share of all."""
    return bad > max_bad * total + 1e-6  # 0.29 * 100 is a little less than 29


def left_out(source: Source) -> Sequence[BadRecord]:
    """The records that a source found bad at opening and left out."""
    return source.bad if isinstance(source, Checked) else ()


def caption_faults(source: Source, index: int) -> str:
    """Faults of the captions that the source leaves out of an image; "" if there are none."""
    # Asked of every record that is trained on, where `isinstance` of a protocol takes too long.
    faults = getattr(source, "caption_faults", None)
    return faults(index) if faults else ""
