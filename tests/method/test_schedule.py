"""Which epoch is which phase."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repr_ray.method.schedule import Schedule


def test_the_papers_first_figure() -> None:
    schedule = Schedule.fit(100, 20, 10)
    sub = [epoch for epoch in range(100) if schedule.phase(epoch) == "sub"]
    assert sub == [*range(20, 30), *range(50, 60), *range(80, 90)]
    assert [e for e in range(100) if schedule.drops_at(e)] == [20, 50, 80]
    assert [e for e in range(100) if schedule.reinitialises_at(e)] == [30, 60, 90]


def test_the_authors_code_trains_379_epochs() -> None:
    schedule = Schedule.fit(379, 20, 20)
    assert schedule.cycles == 9
    assert sum(schedule.phase(epoch) == "full" for epoch in range(379)) == 199


@given(s1=st.integers(1, 7), s2=st.integers(1, 7), cycles=st.integers(1, 5), rest=st.integers(1, 9))
def test_every_drop_is_followed_by_a_return_and_full_training(s1: int, s2: int, cycles: int, rest: int) -> None:
    epochs = cycles * (s1 + s2) + rest
    schedule = Schedule.fit(epochs, s1, s2, cycles)
    drops = [e for e in range(epochs) if schedule.drops_at(e)]
    returns = [e for e in range(epochs) if schedule.reinitialises_at(e)]
    assert drops == [s1 + n * (s1 + s2) for n in range(cycles)]
    assert returns == [drop + s2 for drop in drops]
    assert schedule.phase(0) == schedule.phase(epochs - 1) == "full"
    assert [schedule.cycle(e) for e in drops] == list(range(cycles))
    for epoch in range(epochs):
        assert (schedule.phase(epoch) == "sub") == any(d <= epoch < d + s2 for d in drops)


@given(epochs=st.integers(2, 120), s1=st.integers(1, 25), s2=st.integers(1, 25))
def test_a_last_cycle_may_be_cut(epochs: int, s1: int, s2: int) -> None:
    """Drops every s1 + s2 epochs from s1 on, returns s2 epochs later, both as long as the training lasts."""
    if s1 >= epochs:
        with pytest.raises(ValueError, match=rf"need {s1 + 1} epochs, there are {epochs}"):
            Schedule.fit(epochs, s1, s2, last_cycle="cut")
        return
    schedule = Schedule.fit(epochs, s1, s2, last_cycle="cut")
    assert [e for e in range(epochs) if schedule.drops_at(e)] == list(range(s1, epochs, s1 + s2))
    assert [e for e in range(epochs) if schedule.reinitialises_at(e)] == list(range(s1 + s2, epochs, s1 + s2))


def test_85_epochs_end_in_a_third_cycle_when_it_may_be_cut() -> None:
    for last_cycle, expected in (("whole", [20, 50]), ("cut", [20, 50, 80])):
        schedule = Schedule.fit(85, 20, 10, last_cycle=last_cycle)
        assert [e for e in range(85) if schedule.drops_at(e)] == expected
    assert Schedule.fit(110, 20, 10, last_cycle="cut") == Schedule.fit(110, 20, 10)


@pytest.mark.parametrize("epochs, cycles", [(30, None), (30, 1), (60, 2), (5, None)])
def test_a_cycle_that_leaves_no_full_epoch_is_refused(epochs: int, cycles: int | None) -> None:
    with pytest.raises(ValueError, match=rf"need \d+ epochs, there are {epochs}"):
        Schedule.fit(epochs, 20, 10, cycles)
