"""Where the wall time of a run goes."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

Part = Literal["data", "backbone", "heads"]
PARTS: tuple[Part, ...] = ("data", "backbone", "heads")


class Clock:
    """Seconds by what they were spent on, and counts of what was done.

    Work that runs ahead in other processes costs nothing here; what is counted is how long the
    run waited for it. A time within another one is taken from it, so that the parts add up.
    """

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.counts: dict[str, int] = {}
        self._inner: list[float] = []

    @contextlib.contextmanager
    def time(self, what: Part) -> Iterator[None]:
        """Adds the time that the block takes to a part."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[what] += spent - self._inner.pop()
            if self._inner:
                self._inner[-1] += spent

    def count(self, what: str, n: int = 1) -> None:
        """Counts `n` more of something, for instance of `forwards`."""
        self.counts[what] = self.counts.get(what, 0) + n

    def summary(self) -> dict[str, Any]:
        """Plain values for a record: `seconds`, `shares` of them, `forwards` and `total`.

        `total` is the wall time since the clock was made; shares are of the time that was timed.
        """
        timed = sum(self.seconds.values())
        return {
            "seconds": {what: round(spent, 3) for what, spent in self.seconds.items()},
            "shares": {
                what: round(spent / timed, 4) if timed else 0.0
                for what, spent in self.seconds.items()
            },
            "forwards": self.counts.get("forwards", 0),
            "total": round(time.perf_counter() - self.started, 3),
        }

    def load(self, summary: Mapping[str, Any]) -> None:
        """Goes on from what another clock's `summary` said."""
        for what, spent in summary["seconds"].items():
            self.seconds[what] = self.seconds.get(what, 0.0) + spent
        self.count("forwards", summary["forwards"])
        self.started -= summary["total"]
