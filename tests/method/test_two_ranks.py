"""Two data-parallel processes hold the same model, and rank filters by data as one process does."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from networks import assert_silent, batches, stack
from torch import Tensor, nn

from repr_ray import RePr
from repr_ray.distributed import checksum
from repr_ray.method.data_scores import score_by_data
from repr_ray.method.filters import map_filters
from repr_ray.method.settings import DATA_SCORES

EPOCHS = 7


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)  # DDP sends rank 0's weights
    model = stack()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    settings = {"selection": {"scope": "layer"}, "reinit": {"next_layer": "default"}}
    scheme = RePr(parallel, optimizer, epochs=EPOCHS, s1=1, s2=2, seed=rank, **settings)
    sums, maps = [], []
    for epoch in range(EPOCHS):
        events = scheme.start_epoch(epoch)
        assert bool(events) == (rank == 0 and epoch in (1, 3, 4, 6))
        for images, labels in batches():
            optimizer.zero_grad()
            F.cross_entropy(parallel(images[rank::2]), labels[rank::2]).backward()
            optimizer.step()
            scheme.after_step()
            assert_silent(model, scheme.masks)
        sums.append(checksum(model))
        maps.append({name: mask.tolist() for name, mask in scheme.dropped.items()})
    for norm in (model[1], model[7]):
        for buffer in norm.buffers():
            dist.broadcast(buffer, 0)
    own = [(images[rank::2], labels[rank::2]) for images, labels in batches()]
    scores = {name: score(name, model, own) for name in DATA_SCORES}
    torch.save({"sums": sums, "maps": maps, "scores": scores, "model": model.state_dict()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def score(name: str, model: nn.Module, own: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return score_by_data(name, model, map_filters(model).layers, lambda: own, torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_trap_7_rank_0_decides_and_everyone_receives(tmp_path: Path) -> None:
    """Even where the seeds of the ranks differ."""
    mp.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="spawn")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert ranks[0]["sums"] == ranks[1]["sums"] and ranks[0]["maps"] == ranks[1]["maps"]
    model = stack()
    model.load_state_dict(ranks[0]["model"])
    for name in DATA_SCORES:
        for layer, alone in score(name, model, batches()).items():
            assert torch.equal(ranks[0]["scores"][name][layer], ranks[1]["scores"][name][layer])
            torch.testing.assert_close(ranks[0]["scores"][name][layer], alone, rtol=1e-4, atol=1e-7)
