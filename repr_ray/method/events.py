"""Changes that a scheme makes to the layers of a network, as records and as lines of a log."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerEvent:
    """One drop or re-initialisation in one layer of J filters.

    `dropped` marks the filters that the event is about (dropped, brought back, ...), `overlap_*` is the layer's mean
    |cos| between filters and `zero` the number of its filters whose kernel is all zeros, after the event. Where
    filters change during an epoch, `overlap_before` is None, and the event is of the whole epoch.
    `largest_cos`, `relaxed` and `last_resort` are those of `Redrawn`, before `next_layer` is applied. If single
    weights are masked, `scores` are their shares of each filter's weights.
    """

    cycle: int
    event: str
    epoch: int
    layer: str
    dropped: tuple[int, ...]
    overlap_before: float | None
    overlap_after: float
    scores: tuple[float, ...] | None = None
    largest_cos: float | None = None
    relaxed: int = 0
    last_resort: int = 0
    zero: int = 0


NEARLY_ALL = 0.85  # share of dropped filters in a layer from which there is a warning


_VERBS = {
    "drop": "dropped",
    "reinit": "brought back",
    "renew": "re-initialised",
    "replace": "replaced",
    "shrink": "shrank and perturbed",
    "mask": "masked",
    "unmask": "unmasked",
}


def describe(events: list[LayerEvent], width: int | None = None) -> str:
    """An event in one line: what was done to how many filters, or weights, of each layer.

    A line longer than `width` names only the layers with the largest share.
    """
    event = events[0].event
    verb = _VERBS.get(event, event)
    total = sum(sum(e.dropped) for e in events)
    everything = sum(len(e.dropped) for e in events)
    cycle = "" if event == "replace" else f"cycle {events[0].cycle + 1}: "  # in single steps of an epoch
    begin = f"{cycle}{verb} {total} of {everything} filters"
    relaxed, last = sum(e.relaxed for e in events), sum(e.last_resort for e in events)
    end = f"; {relaxed} by the relaxed rule" if relaxed else ""
    end += f"; {last} by the last resort" if last else ""
    layers = [f"{e.layer} {sum(e.dropped)}/{len(e.dropped)}" for e in events]
    if event in ("mask", "unmask"):
        begin = f"{verb} weights of {everything} filters"
        layers = [f"{e.layer} {sum(e.scores or ()) / len(e.dropped):.0%}" for e in events]
    whole = _listed(f"{begin}: ", layers, "  ", end, None)
    if width is None or len(whole) <= width:
        return whole
    most = sorted(range(len(events)), key=lambda n: -sum(events[n].dropped) / len(events[n].dropped))
    part = _listed(f"{begin}: ", [layers[n] for n in most], "  ", end, width)
    return part if len(part) <= width else begin + end


def terms(events: list[LayerEvent]) -> dict[str, str]:
    """The meaning of terms in the lines of `describe` and `warnings`, or the remedy, by term."""
    found = {}
    if any(e.relaxed for e in events):
        found["relaxed rule"] = "the null space is used up; orthogonal to the most overlapping filters alone"
    if any(e.last_resort for e in events):
        found["last resort"] = "no direction was left; see reinit.last_resort"
    if _nearly_all(events):
        found["to spread drops"] = "selection.scope=layer, or selection.exclude=[first]"
    return found


def warnings(events: list[LayerEvent], width: int | None = None) -> dict[str, str]:
    """Warnings about a drop or a re-initialisation: one line for each kind, which fits `width` if it can."""
    found = {}
    zero = [f"{e.zero} of {e.layer}" for e in events if e.event == "reinit" and e.zero]
    if zero:
        found["zero"] = _listed("the kernel is all zeros in ", zero, ", ", "", width)
    if events[0].event == "drop" and not any(sum(e.dropped) for e in events):
        found["nothing"] = "nothing was dropped, raise prune_ratio or exclude fewer layers"
    if nearly := _nearly_all(events):
        found["nearly"] = _listed("nearly the whole of ", nearly, ", ", "", width)
    return found


def _nearly_all(events: list[LayerEvent]) -> list[str]:
    return [e.layer for e in events if e.event == "drop" and sum(e.dropped) >= NEARLY_ALL * len(e.dropped)]


def _listed(begin: str, names: list[str], separator: str, end: str, width: int | None) -> str:
    """Names between two texts: all, or as many as fit `width`, one at least, and how many more layers there are."""
    for shown in range(len(names), 0, -1):
        more = f"{separator}and {len(names) - shown} more layers" if shown < len(names) else ""
        line = f"{begin}{separator.join(names[:shown])}{more}{end}"
        if width is None or len(line) <= width:
            break
    return line
