"""Learning-rate schedules beside those of torch, step by step."""

import pytest
import torch
from torch.optim import lr_scheduler

from repr_ray.optim.optimizers import RmsProp
from repr_ray.optim.rates import CosineRestarts, OneCycle


def rates(scheduler: type, steps: int, **settings: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    schedule, found = scheduler(optimizer, **settings), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(("first", "factor"), [(10, 2), (3, 1), (2, 3)])
def test_cosine_with_restarts(first: int, factor: int) -> None:
    ours = CosineRestarts(kind="cosine_restarts", first=first, factor=factor)
    theirs = rates(lr_scheduler.CosineAnnealingWarmRestarts, 4 * 40, T_0=4 * first, T_mult=factor)
    assert [ours.rate(0.1, step, 4, 40) for step in range(4 * 40)] == pytest.approx(theirs)


@pytest.mark.parametrize(("epochs", "rising"), [(40, 0.3), (10, 0.5), (3, 0.1)])
def test_one_cycle(epochs: int, rising: float) -> None:
    ours = OneCycle(kind="one_cycle", rising=rising)
    theirs = rates(lr_scheduler.OneCycleLR, 5 * epochs, max_lr=0.1, total_steps=5 * epochs, pct_start=rising)
    assert [ours.rate(0.1, step, 5, epochs) for step in range(5 * epochs)] == pytest.approx(theirs)


def test_a_cycle_of_one_step() -> None:
    assert OneCycle(kind="one_cycle").rate(0.1, 0, 1, 1) > 0


def test_rmsprop() -> None:
    made = RmsProp(kind="rmsprop", momentum=0.9, centered=True).optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(made, torch.optim.RMSprop)
    made.param_groups[0]["params"][0].grad = torch.ones(1)
    made.step()
    [state] = made.state.values()
    assert (
        len([key for key in state if key != "step"])
        == RmsProp(kind="rmsprop", momentum=0.9, centered=True).momenta
        == 3
    )
