"""Shape of the heads of a learned first stage."""

from dataclasses import dataclass

CODE_LENGTHS = (64, 128, 256, 512, 1024, 2048)
"""Bits of the codes that a code head gives by default: each is the beginning of the next."""


@dataclass(frozen=True)
class FirstStageConfig:
    """Heads that turn the backbone's embeddings into those of the first stage, and into codes."""

    code_lengths: tuple[int, ...] = CODE_LENGTHS
    """Lengths in bits at which codes were trained, rising; a shorter code is the beginning of a
    longer one. () has no code head."""
    hidden_size: int = 0
    """Width of a hidden layer in both heads; 0 has none: both are linear."""
    reads_tokens: bool = False
    """Whether the heads of images also read the mean of an image's compressed tokens."""

    def __post_init__(self):
        lengths = tuple(self.code_lengths)
        object.__setattr__(self, "code_lengths", lengths)
        if any(bits < 8 or bits % 8 for bits in lengths) or sorted({*lengths}) != [*lengths]:
            told = ", ".join(map(str, lengths))
            raise ValueError(f"code_lengths {told}: give multiples of 8, each once, rising")
        if self.hidden_size < 0:
            raise ValueError(f"hidden_size {self.hidden_size}: give a width, or 0 for no layer")

    @property
    def bits(self) -> int:
        """Bits of the longest code; 0 without a code head."""
        return self.code_lengths[-1] if self.code_lengths else 0
