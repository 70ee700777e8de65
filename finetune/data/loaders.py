"""What stands between a split and the batches of an epoch: order, seeds, batches, and what is kept in between."""

from __future__ import annotations

import atexit
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from finetune.data.splits import Split
from finetune.runtime.seeding import derive_seed, seed_cpu

Transform = Callable[[Tensor], Tensor]


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """A split as uint8 tensors (3, size, size) and labels.

    An index is a position, or (epoch, position) where augmentation needs the epoch.
    """

    def __init__(
        self, split: Split, plain: Transform, augmented: Transform | None = None, seed: int = 0, plain_epochs: int = 0
    ) -> None:
        """`plain` is used without `augmented`, and in the first `plain_epochs` epochs."""
        self.split, self.plain, self.augmented = split, plain, augmented
        self.seed, self.plain_epochs = seed, plain_epochs

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, int]:
        epoch, i = index if isinstance(index, tuple) else (0, index)
        pixels = self.split.load(i)
        if self.augmented is None or epoch < self.plain_epochs:
            return self.plain(pixels), self.split.labels[i]
        state = torch.get_rng_state()
        try:
            seed_cpu(derive_seed(self.seed, epoch, i))
            return self.augmented(pixels), self.split.labels[i]
        finally:
            torch.set_rng_state(state)


def collate(items: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W), in channels_last where they come so, or views (N, V, 3, H, W), and labels (N,)."""
    pictures = [image.movedim(-3, -1) for image, _ in items]
    if pictures[0].ndim == 3 and all(p.is_contiguous() for p in pictures):  # else torch.stack would copy byte by byte
        images = torch.stack(pictures).permute(0, 3, 1, 2)
    else:
        images = torch.stack([image for image, _ in items])
    return images, torch.tensor([label for _, label in items])


def shard_size(count: int, rank: int, world: int) -> int:
    """How many of so many images are one process's."""
    return len(range(rank, count, world))


class EpochSampler(Sampler[tuple[int, int]]):
    """A new order every epoch that depends on the seed and the epoch alone, so that a resumed run sees the same one.

    Of several processes each takes every `world`-th image, and some may have one image more than others.
    """

    def __init__(self, length: int, seed: int, epoch: Callable[[], int], rank: int = 0, world: int = 1) -> None:
        self.length, self.seed, self.epoch, self.rank, self.world = length, seed, epoch, rank, world

    def __len__(self) -> int:
        return shard_size(max(self.length, self.world), self.rank, self.world)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch()
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        order = torch.randperm(self.length, generator=generator).tolist()
        order += (order * self.world)[: max(0, self.world - self.length)]  # each process needs a batch
        return iter([(epoch, i) for i in order[self.rank :: self.world]])


class BalancedBatchSampler(BatchSampler):
    """Batches of `batch_size`, as many in every process.

    A last batch that would leave any process one image, or none, joins the one before it: BatchNorm cannot learn from one.
    """

    def _sizes(self) -> list[int]:
        order: EpochSampler = self.sampler  # type: ignore[assignment]
        length = max(order.length, order.world)
        full, rest = divmod(length, self.batch_size * order.world)
        sizes = [self.batch_size] * full
        mine = shard_size(rest, order.rank, order.world)
        if full and rest < 2 * order.world:
            sizes[-1] += mine
        elif rest:
            sizes.append(mine)
        return sizes

    def __init__(
        self,
        sampler: EpochSampler,
        batch_size: int,
        drop_last: bool = False,
        done: Callable[[], int] = lambda: 0,
    ) -> None:
        """`done` says how many batches of the epoch were trained on before the run was interrupted."""
        super().__init__(sampler, batch_size, drop_last)  # type: ignore[arg-type]
        self.done = done

    def __len__(self) -> int:
        return len(self._sizes())

    def __iter__(self) -> Iterator[list[int]]:
        items, done = iter(self.sampler), self.done()
        for number, size in enumerate(self._sizes()):
            batch = [next(items) for _ in range(size)]
            if number >= done:
                yield batch


class Resumable:
    """Tells Lightning that batches go on where a run was interrupted: from the run's own count, without a state."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to do."""


def ignore_signals(worker: int) -> None:
    """In a process that decodes: Ctrl-C and SIGTERM reach the whole group, and the main process needs its batches.

    It ends when its loader does, with the main process by `_end_workers`, and by itself where that one was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


_workers: weakref.WeakSet[BaseProcess] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    """Before multiprocessing waits for its processes, having sent them the SIGTERM that they outlive."""
    left = [worker for worker in _workers if worker.is_alive()]
    if left and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises when a worker is killed
    for worker in left:
        worker.kill()


class WorkerDataLoader(Resumable, DataLoader[Any]):
    """A DataLoader over `FullBatches` whose worker processes never keep the main process from exiting."""

    def __iter__(self) -> Any:
        iterator = super().__iter__()
        _workers.update(getattr(iterator, "_workers", ()))
        return iterator


class SwitchableLoader(Resumable):
    """Batches from `first` while `use_first()`, then from `then`; both have the same batches of the same images."""

    def __init__(self, first: Any, then: Any, use_first: Callable[[], bool]) -> None:
        self.first, self.then, self.use_first = first, then, use_first

    def __len__(self) -> int:
        return len(self.then)

    @property
    def _iterator(self) -> Any:
        """Where Lightning looks for worker processes to end after a fit."""
        return getattr(self.then, "_iterator", None)

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        self.then._iterator = value

    def __iter__(self) -> Iterator[Any]:
        loader: Iterable[Any] = self.first if self.use_first() else self.then
        return iter(loader)
