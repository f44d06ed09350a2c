"""Communication between the processes of a launch, through an actor on the head node."""

import asyncio

from repr_ray.training.messages import Done, Failed, Message, Stopped

MAILBOX = "REPR_RAY_MAILBOX"
"""The environment variable of the mailbox's process, which trains nothing."""

Place = tuple[int, int]
"""Epochs done, and optimizer steps of the next one."""


class Mailbox:
    """Collects messages, counts starts of trials, assigns trials to worker groups, and tells processes to stop."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.starts: dict[str, tuple[Place, int]] = {}
        self.running: set[str] = set()
        self.trained: set[str] = set()
        self.given: dict[str, list[str]] = {}
        self.taken: set[tuple[str, str]] = set()
        self.leaving: set[str] = set()
        self.everyone_leaves = False
        self.changed = asyncio.Condition()

    async def begin(self) -> None:
        """Forget the trials of the last round: a trial that paused in it may go on."""
        self.starts.clear()
        self.running.clear()
        self.trained.clear()

    async def put(self, message: Message) -> None:
        """Store a message of a trial."""
        self.messages.append(message)
        if isinstance(message, Done | Failed | Stopped):
            self.running.discard(message.trial)
            if isinstance(message, Done):
                self.trained.add(message.trial)
            await self._notify()

    async def drain(self) -> list[Message]:
        """The messages since the last call."""
        messages, self.messages = self.messages, []
        return messages

    async def start(self, trial: str, place: Place) -> int:
        """The number of starts of the trial from this place, including this one."""
        self.running.add(trial)
        before, count = self.starts.get(trial, (place, 0))
        self.starts[trial] = (place, count + 1 if before == place else 1)
        return self.starts[trial][1]

    async def give(self, group: str, trial: str) -> None:
        """Assign the next trial to a worker group."""
        self.given.setdefault(group, []).append(trial)
        await self._notify()

    async def take(self, group: str, place: int) -> str:
        """Wait for the trial that a worker group is assigned after `place` others."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.given.get(group, ())) > place)
        trial = self.given[group][place]
        self.taken.add((group, trial))
        return trial

    async def was_taken(self, group: str, trial: str) -> bool:
        """Whether a rank of a worker group has taken a trial."""
        return (group, trial) in self.taken

    async def until_trained(self, trial: str) -> None:
        """Return when a trial is done."""
        async with self.changed:
            await self.changed.wait_for(lambda: trial in self.trained)

    async def leave(self, nodes: list[str]) -> None:
        """Make the trials on these nodes save and stop."""
        self.leaving.update(nodes)
        await self._notify()

    async def leave_all(self) -> None:
        """Make every trial save and stop; return when all have."""
        self.everyone_leaves = True
        await self._notify()
        async with self.changed:
            await self.changed.wait_for(lambda: not self.running)

    async def until_leaving(self, node: str) -> None:
        """Return when the trials on this node have to stop."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.everyone_leaves or node in self.leaving)

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()
