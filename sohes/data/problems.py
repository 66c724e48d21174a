"""What was broken in the data and left out: counted by kind, with examples, so that no number hides it."""

from __future__ import annotations

from sohes.errors import DataError

_EXAMPLES = 3


class Problems:
    """Broken entries by kind; when strict, the first is raised.

    Attributes:
        counts: how many of each kind.
        examples: the first few messages of each kind.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}
        self._seen: set[str] = set()  # a store's forests may be asked for more than once

    def add(self, kind: str, message: str) -> None:
        """Count one; the same message again does not count.

        Args:
            kind: in words, the same for all of its kind.
            message: names file, entry and field.

        Raises:
            DataError: when strict.
        """
        if self.strict:
            raise DataError(f"{message} (without --strict it would be skipped)")
        if message in self._seen:
            return
        self._seen.add(message)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES:
            examples.append(message)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def lines(self) -> list[str]:
        """A sentence for each kind."""
        return [
            f"skipped {count} x {kind}, e.g. {'; '.join(self.examples[kind])}" for kind, count in self.counts.items()
        ]
