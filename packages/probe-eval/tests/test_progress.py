"""Progress where there is no terminal: few lines, on rank 0 only."""

import logging

import pytest

from probe_eval import progress
from probe_eval.progress import Counter, Tracker, index_progress, track


@pytest.fixture(autouse=True)
def _informed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="probe_eval")


def test_a_short_job_says_one_line(caplog: pytest.LogCaptureFixture) -> None:
    assert list(track("abc", "letters", 3)) == ["a", "b", "c"]
    (line,) = caplog.messages
    assert line.startswith("letters  3/3  ")


def test_what_an_earlier_run_did_counts_but_not_in_the_rate(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 10.0, 10.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Tracker("steps", 100, done=50) as tracker:
        tracker.advance(5, note="loss 1")
    assert caplog.messages == ["steps  55/100  0.50/s  10 s elapsed, 90 s left  loss 1"]


def test_a_long_job_says_lines_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    list(track(range(3), "items", 3))
    assert len(caplog.messages) == 4


def test_other_ranks_are_silent(
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    list(track(range(3), "items", 3))
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")


def test_a_job_that_fails_does_not_say_that_it_is_done(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        with Tracker("items", 3) as tracker:
            tracker.advance()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert caplog.messages == []


def test_stages_are_counted_apart(caplog: pytest.LogCaptureFixture) -> None:
    with Counter("ssv2 train") as counter:
        for stage, total in (("indexing", 3), ("reading", 2), ("reading", 0)):
            for done in range(total + 1):
                counter(done, total, stage)
    assert [line.split("  ")[:2] for line in caplog.messages] == [
        ["ssv2 train: indexing", "3/3"],
        ["ssv2 train: reading", "2/2"],
    ]


def test_an_index_that_takes_no_time_is_not_worth_a_line(caplog: pytest.LogCaptureFixture) -> None:
    progress = index_progress("ssv2 train")
    for done in (1, 2, 2):
        progress(done, 2)
    assert caplog.messages == []
    assert progress.tracker is None


def test_indexing_that_takes_long_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "WORTH_TELLING", 0.0)
    given = index_progress("ssv2 train")
    for done in (1, 2, 2):  # the last may be told twice
        given(done, 2)
    (line,) = caplog.messages
    assert line.startswith("ssv2 train: indexing  2/2  ")


def test_files_of_an_unknown_number_are_told_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    index_progress("ssv2 train")(1500, 0)
    assert caplog.messages == ["ssv2 train: indexing  1,500 files so far"]
