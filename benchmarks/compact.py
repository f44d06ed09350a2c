"""S2 on a physically smaller copy of the network, beside training it masked.

python -m benchmarks.compact [--rounds 5] [--images 640] [--threads N]: 30% of the filters are dropped, evenly over
the layers (`layer`) or wherever the ranking finds them (`global`). Making the copy and putting it back, once an
epoch, counts. That both ways give the same weights is tested (tests/method/test_compact.py).
"""

import argparse
import os

import torch
from torch import nn

from benchmarks.tables import CPU, interleaved, ratio_table, write
from benchmarks.training import MODELS, epoch_rate
from benchmarks.trials import cifar_trial, random_images, set_up_on
from repr_ray.data.decoded import Split
from repr_ray.training.loop import train_epoch
from repr_ray.training.step import Setup

WAYS = {"masked": False, "compact": True}


def main() -> None:
    """Time both ways and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    split = random_images(args.images)
    arms, notes = [], []
    for name in MODELS:
        for scope in ("layer", "global"):
            for precision in ("fp32", "bf16"):
                setups = {way: in_s2(name, scope, split, precision, compact) for way, compact in WAYS.items()}
                rates = {way: epoch_rate(setup, epoch=1) for way, setup in setups.items()}
                arms += interleaved(rates, args.rounds, f"{name}, {scope}, {precision}")
            notes.append(f"- {name}, {scope}: {kept(setups['compact'])} filters are in the copy.")
    lines = [*ratio_table(arms, "masked", "images/s"), "", *notes]
    write("compact", "S2 on a smaller copy of the network", lines, CPU, args.threads)


def in_s2(name: str, scope: str, split: Split, precision: str, compact: bool) -> Setup:
    """A trial at the start of S2, with momenta in its optimizer."""
    scheme = {"kind": "repr", "s1": 1, "s2": 1, "prune_ratio": 0.3, "selection": {"scope": scope}}
    optimizer = {"kind": "sgd", "learning_rate": 0.01, "momentum": 0.9}
    trial = cifar_trial(MODELS[name], scheme, epochs=4, optimizer=optimizer, compact_sub_network=compact)
    setup = set_up_on(trial, split, precision, CPU)
    setup.scheme.start_epoch(0)
    train_epoch(setup, 0)
    setup.scheme.start_epoch(1)
    return setup


def kept(setup: Setup) -> str:
    """Share of filters in the copy."""
    sub = setup.scheme.sub_network()
    networks = [sub.model if sub else setup.model, setup.model]
    few, all_ = (sum(m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)) for net in networks)
    return f"{few} of {all_}"


if __name__ == "__main__":
    main()
