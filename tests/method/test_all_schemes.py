"""Properties of every scheme: resuming, tensors in the same memory, equal ranks, events with a description."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from networks import batches, stack, tensors
from table import EPOCHS, SCHEMES, Case, epoch_of, make
from torch import nn

import repr_ray
from repr_ray.distributed import checksum
from repr_ray.method.events import describe
from repr_ray.method.scheme import Scheme
from repr_ray.method.settings import SchemeSettings
from repr_ray.study.reading import validate


def test_the_table_has_them_all() -> None:
    assert set(SchemeSettings.kinds) <= {
        case.scheme.Settings.model_fields["kind"].default for case in SCHEMES.values()
    }


@pytest.mark.parametrize("case", SCHEMES)
def test_resuming_after_any_epoch_and_in_any_epochs_middle(case: str) -> None:
    """From each place the next half of an epoch leads to the very state that the run without a break had there."""
    parts, new = make(case), make(case)
    events: list[Any] = []
    places = [(epoch, half) for epoch in range(EPOCHS) for half in (0, 2)]
    states, told = [copy.deepcopy([part.state_dict() for part in parts])], []
    for epoch, half in places:
        told.append(epoch_of(*parts, epoch, half, half + 2))
        events += told[-1]
        states.append(copy.deepcopy([part.state_dict() for part in parts]))
    assert tuple(dict.fromkeys(event.event for event in events)) == SCHEMES[case].events
    for (epoch, half), before, after, expected in zip(places, states[:-1], states[1:], told, strict=True):
        again = copy.deepcopy(new)
        for part, state in zip(again, copy.deepcopy(before), strict=True):
            part.load_state_dict(state)
        assert epoch_of(*again, epoch, half, half + 2) == expected
        found = [part.state_dict() for part in again]
        assert found[2].pop("settings", None) == after[2].get("settings")
        rest = [*after[:2], {name: value for name, value in after[2].items() if name != "settings"}]
        torch.testing.assert_close(found, rest, rtol=0, atol=0)


@pytest.mark.parametrize("case", SCHEMES)
def test_a_state_of_another_seed_is_refused(case: str) -> None:
    """Its draws would not be those of the training without a break."""
    with pytest.raises(ValueError, match="seed=0, this scheme has seed=1"):
        make(case, seed=1)[2].load_state_dict(make(case)[2].state_dict())


@pytest.mark.parametrize("case", SCHEMES)
def test_the_default_device_changes_nothing(case: str) -> None:
    """A script may have said `torch.set_default_device("cuda")`; generators are the CPU's."""
    ends = []
    for device in ("cpu", "meta"):
        model, optimizer, scheme = make(case)
        for epoch in range(EPOCHS):
            with torch.device(device):
                scheme.start_epoch(epoch)
            for images, labels in batches():
                optimizer.zero_grad()
                scheme.objective(model(images), labels, images).backward()
                optimizer.step()
                with torch.device(device):
                    scheme.after_step()
            with torch.device(device):
                scheme.end_epoch()
        ends.append(checksum(model))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("case", SCHEMES)
def test_memory_stays_where_it_is(case: str) -> None:
    """What a CUDA graph has recorded stays valid: weights, buffers, moments, masks."""
    model, optimizer, scheme = make(case)
    epoch_of(model, optimizer, scheme, 0)

    def places() -> list[int]:
        state = [v for values in optimizer.state.values() for v in values.values() if isinstance(v, torch.Tensor)]
        own = [t for value in vars(scheme).values() for t in _tensors_in(value)]
        return [t.data_ptr() for t in (*tensors(model).values(), *state, *own, *_tensors_in(vars(scheme.term)))]

    before = places()
    for epoch in range(1, EPOCHS):
        epoch_of(model, optimizer, scheme, epoch)
    assert places() == before or (case.startswith("repr") and len(before) != len(places()))


def _tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for inner in value.values() for tensor in _tensors_in(inner)]
    return []


@pytest.mark.parametrize("case", SCHEMES)
def test_model_optimizer_and_scheme_are_copied_together(case: str) -> None:
    parts = make(case)
    for epoch in range(3):
        epoch_of(*parts, epoch)
    twins = copy.deepcopy(parts)
    for epoch in range(3, EPOCHS):
        epoch_of(*parts, epoch)
        epoch_of(*twins, epoch)
    assert checksum(twins[0]) == checksum(parts[0])


@pytest.mark.parametrize("case", SCHEMES)
def test_events_are_told_in_a_line(case: str) -> None:
    parts = make(case)
    for epoch in range(EPOCHS):
        if events := epoch_of(*parts, epoch):
            line = describe(events)
            assert "\n" not in line and all(event.layer in line for event in events)
            assert len(describe(events, 90)) <= 90 or events[0].event == "reinit"
            assert all(len(event.dropped) == len(event.scores or event.dropped) for event in events)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look at it
@pytest.mark.parametrize("case", SCHEMES)
def test_it_trains_a_compiled_model(case: str) -> None:
    torch._dynamo.reset()
    plain, compiled = make(case, "momentum"), make(case, "momentum")
    wrapped = torch.compile(compiled[0], backend="eager")
    for epoch in range(EPOCHS):
        epoch_of(*plain, epoch)
        epoch_of(wrapped, *compiled[1:], epoch)
    assert checksum(compiled[0]) == checksum(plain[0])


def small() -> nn.Module:
    """Without batch norm, so that halves of a batch are normalised as the whole is."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(24, 4)),
    )


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    ends = {}
    for case in SCHEMES:
        ends[case] = _train_half(case, slice(rank, None, 2))
    torch.save(ends, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _train_half(case: str, share: slice) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Two epochs more than the first event takes; weights, and events of rank 0.

    The last batch of an epoch has a single image, so that one of two ranks has none.
    """
    torch.manual_seed(0)
    ranks, each = dist.get_world_size() if dist.is_initialized() else 1, batches()
    each.append(tuple(part[:1] for part in each[0]))
    model = small()
    parallel = nn.parallel.DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD(parallel.parameters(), 0.05, momentum=0.9)
    scheme = SCHEMES[case].scheme(parallel, optimizer, epochs=EPOCHS, **SCHEMES[case].settings)
    events = []
    for epoch in range(EPOCHS):
        events += scheme.start_epoch(epoch)
        for number, (images, labels) in enumerate(each):
            torch.manual_seed(number)
            optimizer.zero_grad()
            loss = scheme.loss(parallel(images[share]), labels[share], images[share])
            (loss * ranks / len(labels) + (scheme.penalty() or 0)).backward()  # ranks take the mean of gradients
            optimizer.step()
            scheme.after_step()
        events += scheme.end_epoch()
    return model.state_dict(), [f"{e.epoch} {e.event} {e.layer} {e.dropped}" for e in events]


@pytest.mark.slow
def test_two_ranks_are_equal_and_train_like_one(tmp_path: Path) -> None:
    mp.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for case in SCHEMES:
        (ours, events), (theirs, others) = first[case], second[case]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        alone, expected = _train_half(case, slice(None))
        assert not others
        if case == "repr+orthogonality":
            continue  # new filters are orthogonal: the sign of a cosine of 1e-8, its slope, is that of a rounding
        assert events == expected, case
        torch.testing.assert_close(ours, alone, rtol=2e-3, atol=2e-4, msg=lambda text, case=case: f"{case}: {text}")


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("dsd", {"sparse_at": 5, "dense_at": 5}, "sparse_at=5 and dense_at=5: a training of 8 epochs needs"),
        ("dsd", {"dense_at": 8}, "0 < sparse_at < dense_at < epochs"),
        ("rifle", {"every": 5}, "every=5: nothing is done in 8 epochs"),
        ("soft_filter_pruning", {"prune_ratio": 0}, "schemes.x.prune_ratio=0: input should be greater than 0"),
        ("redo", {"loss": {"kind": "srip", "decay": [[5, 1], [2, 1]]}}, "epochs must ascend, not 5, 2"),
        ("standard", {"loss": {}}, "schemes.x.loss.kind: missing; there are label_smoothing"),
        ("standard", {"loss": {"kind": "ocn"}}, "did you mean ocnn"),
        ("standard", {"loss": {"kind": "ocnn", "wieght": 1}}, "did you mean weight"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(kind: str, settings: dict[str, Any], message: str) -> None:
    raw = {"name": "x", "seeds": [0], "data": {"name": "digits"}, "train": {"epochs": 8}}
    with pytest.raises(ValueError, match=r"schemes\.x") as error:
        validate(raw | {"schemes": {"x": {"kind": kind, **settings}}}, "config")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_penalty_on_a_smaller_copy_is_refused() -> None:
    raw = {"name": "x", "seeds": [0], "data": {"name": "digits"}, "train": {"epochs": 8, "compact_sub_network": True}}
    schemes = {"x": {"kind": "repr", "s1": 1, "s2": 1, "loss": {"kind": "orthogonality"}}}
    with pytest.raises(ValueError, match=r"schemes\.x: loss: orthogonality .* train\.compact_sub_network"):
        validate(raw | {"schemes": schemes}, "config")


def test_networks_that_a_scheme_cannot_work_on_are_refused() -> None:
    only_joined = nn.Sequential(nn.Conv2d(1, 4, 3), nn.PReLU(4), nn.Flatten(), nn.Linear(64, 4))  # a slope a filter
    with pytest.raises(ValueError, match="redo: no convolution has outgoing weights of its own"):
        repr_ray.ReDo(only_joined, torch.optim.SGD(only_joined.parameters(), 0.1), epochs=2)
    model = stack()
    with pytest.raises(ValueError, match="from_layer=33: the network has no such layer"):
        repr_ray.LaterLayerForgetting(model, torch.optim.SGD(model.parameters(), 0.1), epochs=20, from_layer="33")


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_a_network_that_cannot_be_made_anew_is_refused_before_it_is_trained() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), OwnParameter())
    scheme = repr_ray.ShrinkPerturb(model, torch.optim.SGD(model.parameters(), 0.1), epochs=20)
    with pytest.raises(ValueError, match=r"2 \(OwnParameter\) has parameters and no reset_parameters"):
        scheme.start_epoch(0)


def test_hooks_that_are_not_called_are_noticed() -> None:
    parts = make("redo")
    parts[2].detach()
    parts[2].start_epoch(0)
    for _ in range(6):
        parts[2].after_step()
    with pytest.raises(RuntimeError, match="its hooks have seen no forward pass"):
        parts[2].end_epoch()


def test_forgetting_end_epoch_or_after_step_is_noticed() -> None:
    model, optimizer, scheme = make("soft_filter_pruning")
    scheme.start_epoch(0)
    with pytest.raises(ValueError, match=r"call end_epoch\(\) after every epoch"):
        scheme.start_epoch(1)
    model, optimizer, scheme = make("dsd")
    for epoch in range(4):
        epoch_of(model, optimizer, scheme, epoch)
    with torch.no_grad():
        masked = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)][1]
        masked.weight += 1e-8
    with pytest.raises(RuntimeError, match=r"call after_step\(\)"):
        scheme.start_epoch(4)


def test_a_scheme_with_a_loss_of_its_own_carries_none() -> None:
    class Own(Scheme):
        def loss(self, logits: torch.Tensor, labels: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
            return logits.sum()

    model = stack()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    Own(model, optimizer, epochs=2, loss={"kind": "ocnn"})
    with pytest.raises(ValueError, match="Own has a loss of its own"):
        Own(model, optimizer, epochs=2, loss={"kind": "label_smoothing"})


def test_a_case_names_a_public_scheme() -> None:
    for case in SCHEMES.values():
        assert isinstance(case, Case) and case.name in repr_ray.__all__
