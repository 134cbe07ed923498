"""What a campaign counted and found."""

import collections
import dataclasses


@dataclasses.dataclass
class Figures:
    """Counts by outcome, and what must not be."""

    what: str
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    findings: list[str] = dataclasses.field(default_factory=list)

    def count(self, outcome: str) -> None:
        """Count one trial."""
        self.counts[outcome] += 1

    def find(self, text: str) -> None:
        """Note a finding."""
        self.findings.append(text)

    def __str__(self) -> str:
        """Return a line of counts, then a line for each finding."""
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(self.counts.items()))
        head = f"{self.what}: {self.counts.total():,} ({counts}); {len(self.findings)} findings"
        return "\n  ".join([head, *self.findings])
