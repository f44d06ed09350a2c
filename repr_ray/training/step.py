"""The parts of a training, and one optimizer step: plain, on a smaller copy in S2, or as a replayed CUDA graph."""

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from repr_ray import distributed
from repr_ray.data.batches import Batch, Batches
from repr_ray.method.compact import SubNetwork
from repr_ray.method.measurement import RankingBatches
from repr_ray.method.scheme import Scheme
from repr_ray.study.config import Train
from repr_ray.study.plan import Trial
from repr_ray.training.average import Average
from repr_ray.training.stored import StoredLogits

NO_PENALTY = "train.compact_sub_network: a penalty is on weights that the smaller network lacks; set it to false"


@dataclass
class Setup:
    """The parts of a trial's training. `model` is the network, `forward` the same network as it is trained (DDP)."""

    trial: Trial
    device: torch.device
    precision: str
    model: nn.Module
    forward: nn.Module
    optimizer: Optimizer
    scheme: Scheme
    train: Batches
    validation: Batches
    test: Batches
    ranking: RankingBatches | None
    chance: float
    data_digest: str
    data_notes: tuple[str, ...] = ()
    average: Average | None = None
    note: str = ""
    stored: StoredLogits | None = None
    step: "Step" = field(init=False)

    def __post_init__(self) -> None:
        self.step = make_step(self)

    def data_parallel(self, model: nn.Module) -> nn.Module:
        """A network as the ranks of this trial train it."""
        return data_parallel(model, self.trial.train)

    def taking_over(self) -> AbstractContextManager[None]:
        """Wrap changes of the scheme to the network; see `Average.taking_over`."""
        return self.average.taking_over() if self.average else nullcontext()

    def autocast(self) -> torch.autocast:
        """The context of a forward pass in this trial's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


class Step:
    """Forward, backward and update on a batch. `totals` sums loss (nats) and hits over batches, on the device."""

    def __init__(self, setup: Setup) -> None:
        self.setup: Setup = weakref.proxy(setup)  # a reference cycle would keep memory
        self.totals = torch.zeros(2, device=setup.device)
        self.sub: SubNetwork | None = None
        self.forward = setup.forward
        scheme = setup.scheme
        self.own_loss = type(scheme).loss is not Scheme.loss or "loss" in scheme.term.changes

    @contextmanager
    def epoch(self) -> Iterator[None]:
        """Wrap the steps of an epoch, or of a part of one; with `compact_sub_network`, S2 trains a smaller copy."""
        self.sub = self.setup.scheme.sub_network() if self.setup.trial.train.compact_sub_network else None
        self.forward = self.setup.data_parallel(self.sub.model) if self.sub else self.setup.forward
        self.forward.train()
        try:
            yield
        finally:
            if self.sub:
                self.sub.scatter()
            self.sub, self.forward = None, self.setup.forward

    def __call__(self, batch: Batch, learning_rate: float) -> None:
        """Train on this rank's slice of a global batch; does not wait for the device.

        The slice's loss is scaled so that DDP's average over ranks is the mean over the global batch.
        """
        self._set_rate(learning_rate)
        if self.setup.stored:
            self.setup.stored.choose(batch.index)
        self._run(batch)
        if not self.sub and not self.setup.scheme.recorded:
            with self.setup.taking_over():
                self.setup.scheme.after_step()
        if self.setup.average:
            self.setup.average.update()

    def _set_rate(self, learning_rate: float) -> None:
        for group in self.setup.optimizer.param_groups:
            group["lr"] = learning_rate

    def _run(self, batch: Batch) -> None:
        self._train(batch.images, batch.labels, distributed.world_size() / batch.size)

    def _train(self, images: Tensor, labels: Tensor, scale: float) -> None:
        setup = self.setup
        scheme = setup.scheme
        with setup.autocast():
            logits = self.forward(images)
        logits = logits.float()
        loss = scheme.loss(logits, labels, images)
        penalty = scheme.penalty()
        objective = loss * scale if penalty is None else loss * scale + penalty
        if self.sub:
            if penalty is not None:
                raise ValueError(NO_PENALTY)
            objective.backward()
            self.sub.step()
        else:
            setup.optimizer.zero_grad()
            objective.backward()
            scheme.before_step()
            setup.optimizer.step()
            if scheme.recorded:
                scheme.after_step()
        if self.own_loss:  # the tables have the cross-entropy of every scheme
            loss = F.cross_entropy(logits.detach(), labels, reduction="sum")
        self.totals += sums(loss, logits, labels)


class GraphedStep(Step):
    """The same step with its kernels recorded, so that the GPU does not wait for Python between them.

    One graph for the whole network and one for the sub-network, which applies the masks, and one more of each where a
    scheme watches activations in some steps only. Weights, masks and optimizer state only change in place, so that
    graphs stay valid when filters are dropped or return. The first steps, which create the optimizer's state, and a
    last smaller batch run as they are.
    """

    WARM_UP = 3

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.stream = torch.cuda.Stream(setup.device) if setup.device.type == "cuda" else None
        self.graphs: dict[tuple[str, bool], Any] = {}
        self.warm = 0
        self.images = self.labels = torch.empty(0)

    def _set_rate(self, learning_rate: float) -> None:
        for group in self.setup.optimizer.param_groups:
            if not isinstance(group["lr"], Tensor) or group["lr"].device != self.setup.device:
                # a graph would record a number, also one from a checkpoint, as a constant
                group["lr"] = torch.tensor(learning_rate, device=self.setup.device)
            group["lr"].fill_(learning_rate)
            if "capturable" in group:
                group["capturable"] = True

    def _run(self, batch: Batch) -> None:
        if self.sub or self.warm < self.WARM_UP or batch.size != self.setup.trial.train.batch_size:
            self.warm += self.sub is None
            self._train_beside(batch)
            return
        if not self.graphs:
            self.images, self.labels = torch.empty_like(batch.images), torch.empty_like(batch.labels)
        self.images.copy_(batch.images)
        self.labels.copy_(batch.labels)
        kind = self.setup.scheme.phase, self.setup.scheme.watching
        if kind not in self.graphs:
            self.graphs[kind] = self._record(1 / batch.size)
        self.graphs[kind].replay()

    def _train_beside(self, batch: Batch) -> None:
        """Train on the stream of the recording: the state that backward creates is bound to a stream."""
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(self.setup.device))
        with torch.cuda.stream(self.stream):
            self._train(batch.images, batch.labels, 1 / batch.size)
        if self.stream:
            torch.cuda.current_stream(self.setup.device).wait_stream(self.stream)

    def _record(self, scale: float) -> Any:
        graph = torch.cuda.CUDAGraph()
        self.setup.optimizer.zero_grad()
        with torch.cuda.graph(graph, stream=self.stream):
            self._train(self.images, self.labels, scale)
        return graph


def data_parallel(model: nn.Module, train: Train) -> nn.Module:
    """A network as the ranks train it: in DistributedDataParallel where there are several."""
    if distributed.world_size() == 1:
        return model
    if train.sync_batch_norm:
        if next(model.parameters()).device.type != "cuda":
            raise ValueError("train.sync_batch_norm: PyTorch offers it on GPUs only; turn it off, or use one worker")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def make_step(setup: Setup) -> Step:
    """The step of a trial; `resources.cuda_graph` has no effect without a GPU, or under DDP."""
    graphed = setup.trial.resources.cuda_graph and setup.device.type == "cuda" and distributed.world_size() == 1
    return GraphedStep(setup) if graphed else Step(setup)


def sums(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Summed loss and number of hits of a batch, shape (2); of a mixed image the larger class counts."""
    if labels.ndim == 2:
        labels = labels.argmax(1)
    return torch.stack([loss.detach(), (logits.detach().argmax(1) == labels).sum()])
