"""Trials of several workers on Ray: a worker group of Ray Train trains them one after the other."""

import itertools
import threading
import uuid
from concurrent.futures import Future
from typing import Any, ClassVar

from repr_ray.plug_ins import first_line
from repr_ray.runners.ray_private import errors_of_ranks, show_as, torch_trainer
from repr_ray.runners.ray_trial import Launch
from repr_ray.study.config import Resources
from repr_ray.training.messages import Failed, Message, Note, Preempted


class Ranks:
    """A Train worker group that trains trials one after the other, because its start takes longer than small trials.

    It ends with the first trial that fails or stops, or with the Tune process that drives it.
    """

    warm: ClassVar["Ranks | None"] = None

    @classmethod
    def of(cls, launch: Launch, resources: Resources) -> "Ranks":
        """The worker group of this process."""
        if cls.warm is None or cls.warm.ended.done():
            cls.warm = cls(launch, resources)
        return cls.warm

    def __init__(self, launch: Launch, resources: Resources) -> None:
        self.mailbox, self.key = launch.mailbox, uuid.uuid4().hex[:8]
        self.ended: Future[None] = Future()
        threading.Thread(target=self._run, args=(launch, resources), daemon=True).start()

    def train(self, trial: str) -> bool:
        """Whether the trial was trained to its end, rather than stopped. Raises the error of the worker group."""
        import ray

        self.mailbox.give.remote(self.key, trial)
        trained = self.mailbox.until_trained.remote(trial)
        while not self.ended.done():
            if ray.wait([trained], timeout=0.5)[0]:
                ray.get(trained)
                return True
        if ray.get(self.mailbox.was_taken.remote(self.key, trial)):  # else the group ended before this trial
            self.ended.result()
        return False

    def _run(self, launch: Launch, resources: Resources) -> None:
        import ray.train
        from ray.train.torch import TorchConfig

        function: Any = _train_rank
        once: Any = {"max_failures": 0, "max_preemption_failures": 0}  # Tune retries the trial
        gpus = launch.gpus
        trainer = torch_trainer()(
            function,
            train_loop_config={"launch": launch, "key": self.key},
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=resources.workers,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
            ),
            run_config=ray.train.RunConfig(
                name=f"ranks-{self.key}", storage_path=launch.scratch, failure_config=ray.train.FailureConfig(**once)
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)


def _train_rank(config: dict[str, Any]) -> None:
    """Train the trials that the worker group is assigned, until this rank has to stop."""
    import ray
    from ray.train.torch import get_device

    from repr_ray.training.trial import run_trial

    launch: Launch = config["launch"]

    def tell(message: Message) -> None:
        if not isinstance(message, Failed):  # another rank may have died; the driver reports it
            launch.mailbox.put.remote(message)

    stop = launch.stop()
    for place in itertools.count():
        trial = launch.trials[ray.get(launch.mailbox.take.remote(config["key"], place))]
        try:
            run_trial(trial, launch.results, get_device(), tell, launch.origin, stop)
        except Preempted:
            return


def train_on_ranks(config: dict[str, str], launch: Launch) -> dict[str, Any]:
    """Drive the Train worker group of a trial of several workers from this process."""
    from repr_ray.training.trial import failure

    trial = launch.trials[config["trial"]]
    show_as(trial.name)
    last = ""
    while True:
        try:
            launch.start(trial)
            if Ranks.of(launch, trial.resources).train(trial.name):
                return {"failure": None}
        except Preempted:
            raise
        except Exception as error:
            if own := _own_error(error):
                why = failure(own)
                why["message"] += f" (the last time: {last})" * bool(last)
                launch.mailbox.put.remote(Failed(trial.name, why["message"]))
                return {"failure": why}
            last = first_line(_loss(error))
            launch.mailbox.put.remote(Note(f"a rank died: {last}", trial.name))


def _own_error(error: Exception) -> Exception | None:
    """The exception that a rank raised; None if its process, its node, a connection or its loader was lost."""
    from repr_ray.training.trial import is_lost

    failures = errors_of_ranks(error)
    return error if failures is None else next((failure for failure in failures if not is_lost(failure)), None)


def _loss(error: Exception) -> Exception:
    """The loss that ended a worker group: of a rank's images, which the other ranks see as a lost connection."""
    from repr_ray.data.stream import StreamStopped

    failures = errors_of_ranks(error) or [error]
    return next((failure for failure in failures if isinstance(failure, StreamStopped)), failures[0])
