"""Turn images into batches: datasets, samplers, and the one loader that every command reads images with."""

from __future__ import annotations

import atexit
import signal
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from finetune.data.splits import Split
from finetune.runtime import hardware
from finetune.runtime.seeding import derive_seed, seed_cpu

Transform = Callable[[Tensor], Tensor]

WORKER_TIMEOUT_S = 600
"""No batch takes that long: a worker process that has not answered by then never will."""


# --- datasets ----------------------------------------------------------------------------------------------------


NEVER_AUGMENTED = -1
"""In place of an epoch, for `ImageDataset`: the image without augmentation."""


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """A split as transformed images and labels.

    An index is a position, or (epoch, position) where the augmentation needs the epoch; see `EpochSampler`.
    """

    def __init__(
        self,
        split: Split,
        plain: Transform,
        augmented: Transform | None = None,
        seed: int = 0,
        unaugmented_epochs: int = 0,
    ) -> None:
        """Name the images and what happens to them.

        Args:
            split: the images.
            plain: applied where there is no `augmented`, and in the first `unaugmented_epochs` epochs.
            augmented: applied in the other epochs, seeded by the epoch and the image alone.
            seed: of the augmentation.
            unaugmented_epochs: see `plain`.
        """
        self.split, self.plain, self.augmented = split, plain, augmented
        self.seed, self.unaugmented_epochs = seed, unaugmented_epochs

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int | tuple[int, ...]) -> tuple[Tensor, int]:
        if self.augmented is not None and not isinstance(index, tuple):
            raise ValueError(
                f"An augmented image is asked for as (epoch, position), got {index}: with the position alone, every epoch would "
                "see the same augmentation. ImageDataModule.training_order is the place for an order of your own."
            )
        epoch, i, *again = index if isinstance(index, tuple) else (0, index)
        pixels = self.split.load(i)
        if self.augmented is None or epoch < self.unaugmented_epochs:
            return self.plain(pixels), self.split.labels[i]
        state = torch.get_rng_state()
        try:
            seed_cpu(derive_seed(self.seed, epoch, i, *again))
            return self.augmented(pixels), self.split.labels[i]
        finally:
            torch.set_rng_state(state)


def collate(items: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Stack images (N, 3, H, W), in channels_last where they are, or views (N, V, 3, H, W), and labels (N,)."""
    return stack_images([image for image, _ in items]), torch.tensor([label for _, label in items])


def stack_images(images: Sequence[Tensor]) -> Tensor:
    """Stack images in their own memory order."""
    rows = [image.movedim(-3, -1) for image in images]
    if rows[0].ndim == 3 and all(row.is_contiguous() for row in rows):  # else torch.stack would copy byte by byte
        return torch.stack(rows).permute(0, 3, 1, 2)
    return torch.stack(list(images))


# --- samplers ----------------------------------------------------------------------------------------------------


def shard_size(count: int, rank: int, world: int) -> int:
    """Return how many of `count` images are one process's."""
    return len(range(rank, count, world))


def in_order(positions: Iterable[Any], batch_size: int) -> list[list[Any]]:
    """Return batches of positions in their order."""
    positions = list(positions)
    return [positions[k : k + batch_size] for k in range(0, len(positions), batch_size)]


class EpochSampler(Sampler[tuple[int, ...]]):
    """An order of every epoch that depends on the epoch alone, so that a resumed run sees the same one.

    Of several processes each takes every `world`-th image, and some may have one image more than others. An index is
    (epoch, position); an image that comes again in an epoch has (epoch, position, 1), 2 and so on, so that it is augmented
    in another way.
    """

    def __init__(
        self, order: Callable[[int], Sequence[int]], epoch: Callable[[], int], rank: int = 0, world: int = 1
    ) -> None:
        """Name the order, the epoch and the share of this process.

        Args:
            order: returns the positions of an epoch, as many in each.
            epoch: returns the current epoch.
            rank: number of this process.
            world: number of processes.
        """
        self.order, self.epoch, self.rank, self.world = order, epoch, rank, world
        self.length = len(order(0))

    def __len__(self) -> int:
        return shard_size(max(self.length, self.world), self.rank, self.world)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        epoch = self.epoch()
        order = [int(position) for position in self.order(epoch)]
        if len(order) != self.length:
            raise ValueError(
                f"The order of epoch {epoch + 1} has {len(order)} images, that of the first {self.length}."
            )
        order += (order * self.world)[: max(0, self.world - self.length)]  # each process needs a batch
        if len(set(order)) == len(order):
            return iter([(epoch, i) for i in order[self.rank :: self.world]])
        times: Counter[int] = Counter()
        indices: list[tuple[int, ...]] = []
        for i in order:
            indices.append((epoch, i, times[i]) if times[i] else (epoch, i))
            times[i] += 1
        return iter(indices[self.rank :: self.world])


class BalancedBatchSampler(BatchSampler):
    """Batches of `batch_size`, as many in every process.

    A last batch that would leave any process one image, or none, joins the one before it: BatchNorm cannot be trained
    on one.
    """

    def __init__(
        self, sampler: EpochSampler, batch_size: int, drop_last: bool = False, done: Callable[[], int] = lambda: 0
    ) -> None:
        """Name the order; `done` returns how many batches of the epoch were trained on before an interruption."""
        super().__init__(sampler, batch_size, drop_last)  # type: ignore[arg-type]
        self.done = done

    def __len__(self) -> int:
        return len(self._sizes())

    def __iter__(self) -> Iterator[list[Any]]:
        items, done = iter(self.sampler), self.done()
        for number, size in enumerate(self._sizes()):
            batch = [next(items) for _ in range(size)]
            if number >= done:
                yield batch

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


# --- loaders -----------------------------------------------------------------------------------------------------


def make_loader(
    dataset: Dataset[Any],
    batches: Iterable[Any],
    num_workers: int,
    *,
    batch_bytes: int,
    processes: int = 1,
    collate_fn: Callable[[Any], Any] = collate,
    **options: Any,
) -> WorkerDataLoader:
    """Make the loader of a command: worker processes that end with it, that time out, and that have shared memory.

    Args:
        dataset: gives an item for each index.
        batches: lists of indices, taken one after another; a generator may go on as long as it likes.
        num_workers: processes that decode; 0 decodes in this process.
        batch_bytes: what a batch takes of the shared memory.
        processes: that train at the same time, each with its workers.
        collate_fn: makes a batch of items.
        options: further ones of `DataLoader`.

    Raises:
        ValueError: there is too little shared memory for the workers.
    """
    if num_workers:
        _require_shared_memory(num_workers, 2 * num_workers * processes * batch_bytes)
    return WorkerDataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate_fn,
        timeout=WORKER_TIMEOUT_S if num_workers else 0,
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # else every epoch would draw from the global one
        **options,
    )


def _require_shared_memory(num_workers: int, needed: int) -> None:
    """Refuse workers without enough of it: they would lose a batch without a word, and everyone would wait for ever."""
    free = hardware.free_shared_memory()
    if free < needed:
        raise ValueError(
            f"data.num_workers={num_workers} needs {needed / 2**20:.0f} MiB of shared memory, and /dev/shm has "
            f"{free / 2**20:.0f} left: data.num_workers=0 needs none, and docker run --shm-size=1g gives more."
        )


def ignore_signals(worker: int) -> None:
    """Let a worker process outlive Ctrl-C and SIGTERM, which reach the whole group: the main process needs its batches.

    It ends when its loader does, with the main process by `_end_workers`, and by itself where that one was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


_workers: weakref.WeakSet[BaseProcess] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    """Kill the workers before multiprocessing waits for them, having sent them a SIGTERM that they outlive."""
    left = [worker for worker in _workers if worker.is_alive()]
    if left and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises when a worker is killed
    for worker in left:
        worker.kill()


class Resumable:
    """Tells Lightning that batches go on where a run was interrupted: from the run's own count, without a state."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing."""


class WorkerDataLoader(Resumable, DataLoader[Any]):
    """A DataLoader whose worker processes never keep the main process from exiting."""

    def __iter__(self) -> Any:
        iterator = super().__iter__()
        _workers.update(getattr(iterator, "_workers", ()))
        return iterator


class SwitchableLoader(Resumable):
    """Batches of features where an epoch has some, else of pixels; both are the same batches of the same images.

    It asks at the first batch of an epoch: when Lightning makes the loader, features do not exist yet, and a resumed
    run does not know its epoch.
    """

    def __init__(
        self, length: Callable[[], int], features: Callable[[], Any | None], pixels: Callable[[], DataLoader[Any]]
    ) -> None:
        """Name the two.

        Args:
            length: returns the number of batches of an epoch.
            features: returns the loader of features of the current epoch, or None.
            pixels: makes the loader of pixels, once.
        """
        self.length, self.features, self.make_pixels = length, features, pixels
        self.pixels: DataLoader[Any] | None = None

    def __len__(self) -> int:
        return self.length()

    def __iter__(self) -> Iterator[Any]:
        features = self.features()
        if features is None:
            self.pixels = self.pixels or self.make_pixels()
            features = self.pixels
        yield from features

    @property
    def _iterator(self) -> Any:
        """Return where Lightning looks for worker processes to end after a fit."""
        return getattr(self.pixels, "_iterator", None)

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        if self.pixels is not None:
            self.pixels._iterator = value
