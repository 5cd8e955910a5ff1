"""Seconds add up, also where one thing is timed within another."""

import time

import pytest

from probe_eval.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock whose time is what the test waits."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return Clock()


def test_time_within_time_is_counted_once(clock: Clock) -> None:
    with clock.time("heads"):
        time.sleep(1)
        with clock.time("backbone"):
            time.sleep(4)
            with clock.time("data"):
                time.sleep(2)
        time.sleep(1)
    time.sleep(2)
    assert clock.seconds == {"data": 2, "backbone": 4, "heads": 2}
    summary = clock.summary()
    assert summary["shares"] == {"data": 0.25, "backbone": 0.5, "heads": 0.25}
    assert summary["total"] == 10


def test_time_counts_when_the_work_fails(clock: Clock) -> None:
    def fail() -> None:
        with clock.time("heads"), clock.time("data"):
            time.sleep(3)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with clock.time("heads"):
        time.sleep(1)
    assert clock.seconds == {"data": 3, "backbone": 0, "heads": 1}


def test_a_clock_goes_on_from_another(clock: Clock) -> None:
    with clock.time("data"):
        time.sleep(3)
    clock.count("forwards", 5)
    other = Clock()
    other.load(clock.summary())
    with other.time("heads"):
        time.sleep(1)
    other.count("forwards", 2)
    assert other.summary() == {
        "seconds": {"data": 3, "backbone": 0, "heads": 1},
        "shares": {"data": 0.75, "backbone": 0, "heads": 0.25},
        "forwards": 7,
        "total": 4,
    }


def test_no_time_has_no_shares(clock: Clock) -> None:
    assert clock.summary()["shares"] == {"data": 0, "backbone": 0, "heads": 0}
