"""The methods in a user's own loop: the documented lines, mixed precision, compiled and data-parallel models."""

import copy
import io
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from networks import assert_silent, batches, stack, tensors, train
from support import documented
from torch import nn

from repr_ray import RePr
from repr_ray.distributed import checksum

CYCLE = {"epochs": 7, "s1": 1, "s2": 2, "selection": {"scope": "layer"}}


def made() -> tuple[nn.Module, torch.optim.Optimizer, RePr]:
    torch.manual_seed(0)
    model = stack()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    return model, optimizer, RePr(model, optimizer, **CYCLE)


def test_the_documented_lines() -> None:
    model = stack()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    names = {"model": model, "optimizer": optimizer, "loader": batches(1), "F": F}
    before = checksum(model)
    exec(documented("# In your own training loop"), names)  # noqa: S102
    assert names["repr_"].epoch == 99 and names["repr_"].cycle == 3
    assert checksum(model) != before and all(t.isfinite().all() for t in tensors(model).values())


def test_ray_is_not_imported() -> None:
    code = "import sys; from repr_ray import RePr; print([m for m in ('ray', 'pandas', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_mixed_precision_with_a_gradient_scaler() -> None:
    model, optimizer, scheme = made()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)  # the first steps overflow and are skipped
    for epoch in range(7):
        scheme.start_epoch(epoch)
        for images, labels in batches():
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(images).float(), labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheme.after_step()
            assert_silent(model, scheme.masks)
    assert all(t.isfinite().all() for t in tensors(model).values())


def test_gradient_accumulation() -> None:
    """Two half batches a step, and the same weights as whole ones: with batch norm's statistics held."""
    ends = []
    for parts in (1, 2):
        model, optimizer, scheme = made()
        for epoch in range(7):
            scheme.start_epoch(epoch)
            model.eval()
            for images, labels in batches():
                optimizer.zero_grad()
                for x, y in zip(images.chunk(parts), labels.chunk(parts), strict=True):
                    (F.cross_entropy(model(x), y) / parts).backward()
                optimizer.step()
                scheme.after_step()
                assert_silent(model, scheme.masks)
        ends.append(model)
    for one, other in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_compiled_model() -> None:
    """Masks change values in place: nothing is traced again, and the weights are those of the plain model."""
    plain, optimizer, scheme = made()
    train(plain, optimizer, scheme, 0, 7)
    torch.manual_seed(0)
    model = stack()
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(compiled.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    torch._dynamo.reset()  # an equal network of another test may have been compiled
    torch._dynamo.utils.counters.clear()
    events = train(compiled, optimizer, RePr(compiled, optimizer, **CYCLE), 0, 7)
    assert events and checksum(model) == checksum(plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("score", ["random", "hessian", "oracle"])
def test_another_default_device(score: str) -> None:
    """The draws of a ranking, of new filters and of the weights that read them are made on the CPU."""
    images, ends = batches(), []
    for device in ("cpu", "meta"):
        torch.manual_seed(0)
        model = stack()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        scheme = RePr(model, optimizer, **CYCLE, ranking={"score": score}, reinit={"next_layer": "default"})
        with torch.device(device):
            events = [event for epoch in range(4) for event in scheme.start_epoch(epoch, lambda: images)]
        assert {event.event for event in events} == {"drop", "reinit"}
        ends.append(checksum(model))
    assert ends[0] == ends[1]


def test_masks_are_updated_in_place() -> None:
    """What a captured CUDA graph reads stays where it is."""
    model, optimizer, scheme = made()
    addresses = [t.data_ptr() for t in (*scheme.dropped.values(), *tensors(model).values())]
    masks = [mask.data_ptr() for _, mask in scheme.masks._masked.values()]
    train(model, optimizer, scheme, 0, 7)
    assert addresses == [t.data_ptr() for t in (*scheme.dropped.values(), *tensors(model).values())]
    assert masks == [mask.data_ptr() for _, mask in scheme.masks._masked.values()]


def test_the_model_stays_the_users() -> None:
    """Same class, same keys, no hooks; deepcopy, export and saving work while filters are dropped."""
    model, optimizer, scheme = made()
    keys = list(stack().state_dict())
    train(model, optimizer, scheme, 0, 2)
    assert scheme.filters_dropped > 0 and type(model) is nn.Sequential and list(model.state_dict()) == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    images = batches()[0][0]
    expected = model.eval()(images)
    assert torch.equal(copy.deepcopy(model)(images), expected)
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), expected)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    fresh = stack()
    fresh.load_state_dict(torch.load(buffer))
    assert torch.equal(fresh.eval()(images), expected)


def test_model_optimizer_and_scheme_are_copied_together() -> None:
    model, optimizer, scheme = made()
    train(model, optimizer, scheme, 0, 2)
    twins = copy.deepcopy((model, optimizer, scheme))
    train(model, optimizer, scheme, 2, 7)
    train(*twins, 2, 7)
    assert checksum(twins[0]) == checksum(model)
