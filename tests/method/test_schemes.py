"""RePr in a loop: what is frozen, what comes back, what is reset, what can be resumed."""

import copy
from dataclasses import replace

import oracle
import pytest
import torch
from networks import OPTIMIZERS, assert_silent, batches, stack, step, tensors, train
from torch import Tensor, nn

from repr_ray import RePr, distributed
from repr_ray.method.events import describe, terms, warnings
from repr_ray.method.scheme import Scheme
from repr_ray.method.settings import RePrSettings

EPOCHS = 9


def make(
    optimizer: str = "momentum", seed: int = 0, **fields: object
) -> tuple[nn.Module, torch.optim.Optimizer, RePr]:
    torch.manual_seed(seed)
    model = stack()
    opt = OPTIMIZERS[optimizer](model.parameters())
    return model, opt, RePr(model, opt, epochs=EPOCHS, s1=2, s2=2, seed=seed, **fields)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors(model).items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trap_2_dropped_filters_are_bit_for_bit_zero(name: str) -> None:
    model, optimizer, scheme = make(name, selection={"scope": "layer"}, prune_ratio=0.4)
    train(model, optimizer, scheme, 0, 2)
    for epoch in (2, 3):
        scheme.start_epoch(epoch)
        assert scheme.filters_dropped == 9
        for images, labels in batches():
            before = snapshot(model)
            step(model, optimizer, scheme, images, labels)
            assert_silent(model, scheme.masks)
            assert not torch.equal(before["0.weight"], model[0].weight)  # the others train
    scheme.start_epoch(4)
    assert scheme.filters_dropped == 0


def test_trap_4_a_dropped_filter_emits_exactly_zero() -> None:
    model, optimizer, scheme = make(selection={"scope": "layer"})
    train(model, optimizer, scheme, 0, 3)
    seen: dict[str, Tensor] = {}
    for name in ("2", "4", "8"):
        model.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    for training in (True, False):
        model.train(training)(batches()[0][0])
        for name, layer in zip(("2", "4", "8"), ("0", "3", "6"), strict=True):
            assert scheme.dropped[layer].any()
            assert not seen[name][:, scheme.dropped[layer]].any()


def test_forgetting_after_step_is_noticed() -> None:
    model, optimizer, scheme = make()
    train(model, optimizer, scheme, 0, 3)
    scheme.start_epoch(3)
    with torch.no_grad():
        model[0].weight += 1e-8
    with pytest.raises(RuntimeError, match=r"call after_step\(\)"):
        scheme.start_epoch(4)


def test_epochs_come_in_order() -> None:
    _, _, scheme = make()
    scheme.start_epoch(0)
    with pytest.raises(ValueError, match="once for every epoch in order"):
        scheme.start_epoch(2)


def test_the_dropped_are_the_oracles() -> None:
    model, optimizer, scheme = make()
    train(model, optimizer, scheme, 0, 2)
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    scores = {name: oracle.orthogonality(m.weight.detach().numpy()) for name, m in convs.items()}
    events = scheme.start_epoch(2)
    expected = oracle.worst(scores, 0.3, dict.fromkeys(convs, 8))
    assert {n: set(m.nonzero().flatten().tolist()) for n, m in scheme.dropped.items()} == expected
    assert [event.layer for event in events] == list(convs)
    for event in events:
        assert event.scores == pytest.approx(scores[event.layer])
        assert event.overlap_before == pytest.approx(scores[event.layer].sum() / 7)


def test_trap_3_new_filters_reach_the_model_and_avoid_what_they_must() -> None:
    """Orthogonal to the values before the drop and to the survivors as they are after S2."""
    model, optimizer, scheme = make(selection={"scope": "layer"})
    train(model, optimizer, scheme, 0, 2)
    old = snapshot(model)
    train(model, optimizer, scheme, 2, 4)
    dropped = {name: mask.clone() for name, mask in scheme.dropped.items()}
    current = snapshot(model)
    events = {event.layer: event for event in scheme.start_epoch(4)}
    for layer in ("3", "6"):  # 72 dimensions: room for all
        mask, name = dropped[layer], f"{layer}.weight"
        new = model.get_parameter(name).detach()[mask].flatten(1).double().numpy()
        for avoided in (old[name][mask], current[name][~mask]):
            assert oracle.largest_cos(new, avoided.flatten(1).double().numpy()) < 1e-5
        assert events[layer].relaxed == 0 and events[layer].largest_cos < 1e-5
        assert torch.equal(model.get_parameter(name)[~mask], current[name][~mask])
    assert events["0"].relaxed == int(dropped["0"].sum()) == 2  # 8 filters in 9 dimensions
    assert not torch.equal(model[0].weight[dropped["0"]], current["0.weight"][dropped["0"]])


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize("state", ["reset", "keep"])
def test_optimizer_state_of_new_filters(optimizer: str, state: str) -> None:
    model, opt, scheme = make(optimizer, reinit={"optimizer_state": state}, selection={"scope": "layer"})
    train(model, opt, scheme, 0, 4)
    dropped = {name: mask.clone() for name, mask in scheme.dropped.items()}
    before = {name: copy.deepcopy(opt.state[p]) for name, p in model.named_parameters()}
    scheme.start_epoch(4)
    layer_of = {"0": "0", "1": "0", "3": "3", "6": "6", "7": "6"}
    owned = {f"{m}.{kind}": dropped[layer] for m, layer in layer_of.items() for kind in ("weight", "bias")}
    for name, parameter in model.named_parameters():
        for key, value in opt.state[parameter].items():
            if not isinstance(value, Tensor) or value.shape != parameter.shape:
                continue
            mask = owned.get(name, torch.zeros(len(value), dtype=torch.bool))
            if state == "reset":
                assert not value[mask].any(), (name, key)
                mask = ~mask
            else:
                mask = torch.ones_like(mask)
            assert torch.equal(value[mask], before[name][key][mask]), (name, key)


@pytest.mark.parametrize("choice", ["reset", "keep"])
def test_batch_norm_of_new_filters(choice: str) -> None:
    model, optimizer, scheme = make(reinit={"norm_state": choice, "bias": "keep" if choice == "keep" else "zero"})
    train(model, optimizer, scheme, 0, 2)
    old = snapshot(model)
    train(model, optimizer, scheme, 2, 4)
    mask, current = scheme.dropped["0"].clone(), snapshot(model)
    assert mask.any()
    scheme.start_epoch(4)
    fresh = {"1.weight": 1.0, "1.bias": 0.0, "1.running_mean": 0.0, "1.running_var": 1.0, "0.bias": 0.0}
    for name, value in fresh.items():
        now = tensors(model)[name]
        assert torch.equal(now[~mask], current[name][~mask])
        expected = torch.full_like(now, value) if choice == "reset" else old[name]
        assert torch.equal(now[mask], expected[mask]), name


@pytest.mark.parametrize("choice", ["keep", "zero", "default"])
def test_next_layers_channels(choice: str) -> None:
    model, optimizer, scheme = make("adam", reinit={"next_layer": choice, "bias": "default"})
    train(model, optimizer, scheme, 0, 4)
    mask, current = scheme.dropped["0"].clone(), snapshot(model)
    moments = {key: value.clone() for key, value in optimizer.state[model[3].weight].items()}
    scheme.start_epoch(4)
    now, others = model[3].weight.detach(), ~scheme.dropped["3"]
    assert mask.any() and torch.equal(now[others][:, ~mask], current["3.weight"][others][:, ~mask])
    fed = now[others][:, mask]
    if choice == "keep":
        assert torch.equal(fed, current["3.weight"][others][:, mask])
    elif choice == "zero":
        assert not fed.any()
    else:
        assert 0 < fed.abs().max() <= 72**-0.5 and not torch.equal(fed, current["3.weight"][others][:, mask])
    after = optimizer.state[model[3].weight]["exp_avg"]
    expected = (
        moments["exp_avg"] if choice == "keep" else torch.where(mask.view(1, -1, 1, 1), 0.0, moments["exp_avg"])
    )
    assert torch.equal(after, expected)
    bias = model[0].bias.detach()[mask]
    assert bias.any() and bias.abs().max() <= 1 / 3


def test_a_reinitialisation_says_how_far_it_is() -> None:
    model, optimizer, scheme = make(selection={"scope": "layer"})
    train(model, optimizer, scheme, 0, 4)
    seen: list[tuple[int, int]] = []
    scheme.start_epoch(4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 6), (4, 6), (6, 6)]


def test_next_layers_channels_follow_the_new_filters() -> None:
    """They are zeroed after every layer was re-drawn: the draws do not see it, and new filters have them zero too."""
    ends, masks = {}, {}
    for choice in ("keep", "zero"):
        model, optimizer, scheme = make(selection={"scope": "layer"}, reinit={"next_layer": choice})
        train(model, optimizer, scheme, 0, 4)
        masks = {name: mask.clone() for name, mask in scheme.dropped.items()}
        events = scheme.start_epoch(4)
        ends[choice] = snapshot(model)
    assert all(mask.any() for mask in masks.values())
    expected = dict(ends["keep"])
    for source, reader in (("0", "3.weight"), ("3", "6.weight"), ("6", "10.weight")):
        channels = masks[source].view(1, -1, *[1] * (expected[reader].dim() - 2))
        expected[reader] = expected[reader].masked_fill(channels, 0.0)
    assert all(torch.equal(ends["zero"][name], value) for name, value in expected.items())
    assert [event.zero for event in events] == [0, 0, 0]


@pytest.mark.parametrize("stop", range(1, EPOCHS))
def test_resuming_at_any_epoch_ends_with_the_same_weights(stop: int) -> None:
    settings = {"reinit": {"norm_state": "keep", "next_layer": "default"}, "ranking": {"score": "random"}}
    model, optimizer, scheme = make("adam", **settings)
    events = train(model, optimizer, scheme, 0, EPOCHS)
    first, opt, one = make("adam", **settings)
    before = train(first, opt, one, 0, stop)
    saved = copy.deepcopy((first.state_dict(), opt.state_dict(), one.state_dict()))
    second, opt, two = make("adam", seed=0, **settings)
    for part, state in zip((second, opt, two), saved, strict=True):
        part.load_state_dict(state)
    assert {n: m.tolist() for n, m in two.dropped.items()} == {n: m.tolist() for n, m in one.dropped.items()}
    assert (two.phase, two.cycle) == (one.phase, one.cycle)
    assert before + train(second, opt, two, stop, EPOCHS) == events
    assert distributed.checksum(second) == distributed.checksum(model)


def test_settings_by_object_and_by_field_are_the_same() -> None:
    model, optimizer, _ = make()
    one = RePr(model, optimizer, RePrSettings(s1=3, s2=2), epochs=20, prune_ratio=0.5)
    assert one.settings == RePrSettings(s1=3, s2=2, prune_ratio=0.5)


def test_standard_training_walks_the_same_path() -> None:
    model, optimizer, _ = make()
    scheme = Scheme(model, optimizer, epochs=3)
    before = distributed.checksum(model)
    assert [scheme.start_epoch(epoch) for epoch in range(3)] == [[], [], []]
    scheme.after_step()
    scheme.load_state_dict(scheme.state_dict())
    assert distributed.checksum(model) == before
    assert (scheme.phase, scheme.cycle, scheme.filters_dropped, dict(scheme.dropped)) == ("full", 0, 0, {})


def test_a_cycle_is_described_in_one_line() -> None:
    model, optimizer, scheme = make()
    events = train(model, optimizer, scheme, 0, 5)
    dropped, returned = events[:3], events[3:]
    assert describe(dropped).startswith("cycle 1: dropped 7 of 24 filters: 0 ")
    assert "brought back 7 of 24" in describe(returned) and "by the relaxed rule" in describe(returned)
    assert "\n" not in describe(dropped)
    assert not warnings(dropped) | warnings(returned)
    dead = make(reinit={"direction": "zero"})
    events = train(*dead, 0, 5)
    assert [event.zero for event in events] == [sum(event.dropped) for event in events[:3]] * 2
    assert warnings(events[3:])["zero"].startswith(f"the kernel is all zeros in {events[3].zero} of 0")
    whole = [replace(event, dropped=(1,) * 7 + (0,) if event is dropped[0] else event.dropped) for event in dropped]
    layer = dropped[0].layer
    assert warnings(whole)["nearly"].startswith(f"nearly the whole of {layer}")
    assert layer in warnings(whole, 1)["nearly"], "a warning names a layer, however narrow the line"
    assert "selection.scope=layer" in terms(whole)["to spread drops"] and not terms(dropped)
    nothing = make(prune_ratio=0.01)
    assert "nothing was dropped" in warnings(train(*nothing, 0, 3))["nothing"]
    wide = [
        replace(event, layer=f"block{n}.conv", dropped=(1,) * n + (0,) * 60) for n in range(60) for event in dropped
    ]
    line = describe(wide, 80)
    assert len(line) <= 80
    assert "block59.conv 59/119" in line and line.endswith("more layers")
    assert describe(wide).count("block") == 180 and describe(dropped, 80) == describe(dropped)
