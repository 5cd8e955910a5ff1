"""Processes that count each other."""

import inspect
from types import SimpleNamespace

import pytest
from accelerate import Accelerator

from probe_eval.distributed import (
    create_accelerator,
    gather_items,
    gather_ordered,
    is_main_process,
    share,
)


def test_rank_0_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert is_main_process()
    for rank, speaks in (("0", True), ("1", False), ("7", False)):
        monkeypatch.setenv("RANK", rank)
        assert is_main_process() == speaks


def test_a_launcher_that_accelerate_does_not_see_is_an_error(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes .* sees 1; .*ACCELERATE_USE_CPU=true"):
        create_accelerator()


def test_one_process_is_no_launcher(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert create_accelerator().num_processes == 1


def test_one_process_gathers_its_own(accelerator: Accelerator) -> None:
    items = [(3, "c"), (1, "a")]
    assert gather_items(accelerator, items) == items


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_are_all_of_the_work(accelerator: Accelerator, world: int) -> None:
    """Each item falls to one process, and what they made comes back in its order."""
    made = []
    for rank in range(world):
        process = SimpleNamespace(process_index=rank, num_processes=world)
        made += [(place, str(place)) for place in inspect.unwrap(share)(process, range(7))]
    assert gather_ordered(accelerator, made) == [str(place) for place in range(7)]
