"""The LightningDataModule: folders, tables and torchvision data sets as images with class names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader

from finetune.data import loaders, pixel_cache
from finetune.data.readers import ImageReader
from finetune.data.sources import class_order, files_of, named_items, pick, read_folders, read_table, without_bad_files
from finetune.data.splits import Split, content_groups, describe_split, digest, fingerprint, sample_per_class
from finetune.images import info
from finetune.images.info import ImageInfo
from finetune.images.transforms import AUGMENTATIONS, Preprocess
from finetune.inspection import checks, scan
from finetune.inspection.finding import Finding
from finetune.io import download, listing
from finetune.io.listing import note_on_skipped_files
from finetune.io.store import Cache
from finetune.runtime import hardware
from finetune.runtime.seeding import stratified_holdout
from finetune.runtime.suggestions import unknown_name
from finetune.training import feature_store

if TYPE_CHECKING:
    from finetune.training.feature_cache import CachedSplits

WORKER_TIMEOUT_S = 600
"""Longer than any batch takes: a worker that has not answered since will not."""


class ImageDataModule(LightningDataModule):
    """Images with class names, for any Lightning `Trainer`.

        data = ImageDataModule("photos", batch_size=8)
        data.prepare()                      # finds the files and the classes
        module = FineTuner("resnet18", classes=data.classes)
        Trainer().fit(module, datamodule=data)

    >>> from pathlib import Path
    >>> from PIL import Image
    >>> for name, red in (("ants", 0), ("bees", 200)):
    ...     Path("photos", name).mkdir(parents=True)
    ...     for i in range(5):
    ...         Image.new("RGB", (40, 30), (red, i, 0)).save(f"photos/{name}/{i}.png")
    >>> data = ImageDataModule("photos", batch_size=4).prepare()
    >>> data.classes, len(data.splits["train"]), len(data.splits["val"])
    (['ants', 'bees'], 8, 2)

    Class names come from the training images, sorted as torchvision sorts; other splits are mapped onto them by name.
    The order of an epoch's images and the augmentation of each depend on the seed, the epoch and the image alone, not
    on workers or on what ran before.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        dataset: Callable[..., Any] | None = None,
        splits: Mapping[str, Mapping[str, Any]] | None = None,
        url: str | None = None,
        sha1: str | None = None,
        sha256: str | None = None,
        tree_sha256: str | None = None,
        val: str | None = None,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        classes: Sequence[str] | None = None,
        per_class: int | None = None,
        batch_size: int = 32,
        num_workers: int | str = "auto",
        image_size: int | None = None,
        augment: str = "auto",
        cache_images: str = "auto",
        on_bad_file: str = "skip",
        preprocess: Preprocess | None = None,
        seed: int = 0,
        cache_dir: str | Path | None = None,
        cache_gib: float | None = None,
    ) -> None:
        """Name the data; nothing is read before `prepare()` or `fit`.

        Args:
            root: a folder with train/ and val|valid|validation/ and test/ (the last two optional) or with a folder per
                class, or a .csv file with the columns path, label and (optional) split.
            dataset: a torchvision data set's class or a partial of it, instead of a folder.
            splits: for `dataset`, the arguments that make each split: {"train": {"train": True}, "test": ...}.
            url: where to fetch `root` from if it does not exist.
            sha1: of the archive at `url`.
            sha256: of the archive at `url`.
            tree_sha256: of the extracted files, see `download.tree_digest`.
            val: the split to validate on instead of "val".
            val_fraction: share of train held out, by class, where there is no such split.
            split_seed: of that share.
            classes: keep only these.
            per_class: keep only this many training images of each class.
            batch_size: images a step and process.
            num_workers: processes that decode images; "auto" looks at the cores and the number of images.
            image_size: pixels; None is the preprocessing's own.
            augment: "none", "basic", "trivial", "rand", or "auto": none in the epochs in which a FineTuner's trunk is
                frozen, basic in others.
            cache_images: keep decoded pixels, for runs that must see them in every epoch: "ram", "disk" (between runs
                too), "off", or "auto": in memory where they take less than a quarter of what is free.
            on_bad_file: "skip" leaves unreadable files out and lists them, "error" stops.
            preprocess: what the network needs; None takes it from the FineTuner that the Trainer fits.
            seed: of order and augmentation.
            cache_dir: where features and pixels are kept; None is `~/.cache/finetune`.
            cache_gib: how much may be kept there; None is 20.
        """
        super().__init__()
        if augment not in ("auto", *AUGMENTATIONS):
            raise ValueError(unknown_name("augmentation", augment, ("auto", *AUGMENTATIONS)))
        if cache_images not in ("auto", "ram", "disk", "off"):
            raise ValueError(unknown_name("data.cache_images", cache_images, ("auto", "ram", "disk", "off")))
        if on_bad_file not in ("skip", "error"):
            raise ValueError(unknown_name("data.on_bad_file", on_bad_file, ("skip", "error")))
        if not 0 < val_fraction < 1:
            raise ValueError(f"data.val_fraction must be between 0 and 1, got {val_fraction}.")
        if batch_size < 1:
            raise ValueError(f"data.batch_size must be 1 or more, got {batch_size}.")
        self.root = Path(root).expanduser() if root is not None else None
        self.dataset, self.split_arguments = dataset, splits
        self.source = download.Archive(url, sha1=sha1, sha256=sha256, tree_sha256=tree_sha256) if url else None
        self.val, self.val_fraction, self.split_seed = val or "val", val_fraction, split_seed
        self.only_classes, self.per_class = [str(c) for c in classes] if classes else None, per_class
        self.batch_size, self.num_workers = batch_size, num_workers
        self.image_size, self.augment, self.preprocess = image_size, augment, preprocess
        self.cache_images, self.on_bad_file, self.seed = cache_images, on_bad_file, seed
        self.cache = Cache(cache_dir, cache_gib)
        self.cached: CachedSplits | None = None
        """Features in place of pixels, while a FineTuner's fit uses them."""
        self._kept_pixels: dict[str, pixel_cache.PixelCache] = {}
        self.plain_epochs = 0
        """With augment="auto", the first epochs in which images are not augmented."""
        self.classes: list[str] = []
        self.splits: dict[str, Split] = {}
        self._described: dict[str, Any] = {}
        self.bad_files: dict[str, str] = {}
        self.notes: list[str] = []
        """What a person should know of the data: what was left out, what was split."""
        self.findings: list[Finding] = []
        """What may spoil the result: duplicates across splits, uneven classes."""

    # --- finding the images ------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Fetch the data if their folder does not exist. Lightning calls it in one process a machine."""
        if self.dataset is not None:
            self.open_datasets()
        elif self.root is not None and not self.root.exists() and self.source is not None:
            download.fetch(self.source, self.root)

    def setup(self, stage: str | None = None) -> None:
        """Find files, classes and splits; the same in every process."""
        trainer: Any = self.trainer
        module: Any = trainer.lightning_module if trainer is not None else None
        if trainer is not None and trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
            raise ValueError(
                "With several devices, make the Trainer with use_distributed_sampler=False: ours shares images out."
            )
        if not self.splits:
            found = self.open_datasets() if self.dataset is not None else self._find_files()
            self._settle(found)
        self.teardown()
        if self.preprocess is None and isinstance(getattr(module, "preprocess", None), Preprocess):
            self.preprocess = module.preprocess
        if hasattr(module, "plain_epochs"):
            self.plain_epochs = module.plain_epochs(trainer.max_epochs)
        if module is not None and list(getattr(module, "classes", self.classes)) != self.classes:
            raise ValueError(
                f"The module has the classes {getattr(module, 'classes', None)}, the data have {self.classes}. "
                "Build it with classes=data.classes."
            )

    def teardown(self, stage: str | None = None) -> None:
        """Let go of features and kept pixels: they belong to one fit."""
        self.cached = None
        self._kept_pixels = {}
        self.cache.in_use.clear()

    def prepare(self) -> ImageDataModule:
        """Fetch and find the data now, to know the classes before the network is built."""
        self.prepare_data()
        self.setup()
        return self

    def _find_files(self) -> dict[str, tuple[list[str], list[str], list[str]]]:
        """Split -> keys, labels as class names, paths."""
        if self.root is None:
            raise ValueError("data.root is missing: give the folder with your images.")
        if not self.root.exists():
            raise FileNotFoundError(f"data.root={self.root}: there is no such folder (looked from {Path.cwd()}).")
        if self.root.is_file():
            return read_table(self.root)
        found, others = read_folders(self.root)
        self.notes += note_on_skipped_files(others)
        return found

    def open_datasets(self) -> dict[str, Any]:
        """The torchvision data set of each split."""
        make: Any = self.dataset
        keywords = {"root": str(self.root)} if self.root is not None else {}
        try:
            return {name: make(**keywords, **arguments) for name, arguments in (self.split_arguments or {}).items()}
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"{getattr(make, 'func', make).__name__} could not be read from {self.root} or downloaded: {error}. "
                "Without a network, copy its files into that folder (data.root)."
            ) from error

    def _settle(self, found: Mapping[str, Any]) -> None:
        """From what was found to `classes` and `splits`."""
        if "train" not in found:
            raise ValueError(f"The data have no train split, only {', '.join(found) or 'nothing'}.")
        named = {name: named_items(name, item) for name, item in found.items()}
        if self.only_classes is not None:
            missing = sorted(set(self.only_classes) - set(named["train"][1]))
            if missing:
                raise ValueError(unknown_name("class in data.classes:", missing[0], sorted(set(named["train"][1]))))
            named = {n: pick(item, [c in self.only_classes for c in item[1]]) for n, item in named.items()}
        self.classes = class_order(found["train"], named["train"][1])
        if len(self.classes) < 2:
            raise ValueError(
                f"{self.root or 'The data'} has {len(self.classes)} class: {self.classes}. A classifier needs two or "
                "more, each a folder of images."
            )
        known = info.scan_images(files_of(named), self.root, self.cache)
        named, self.bad_files = without_bad_files(named, known, self.on_bad_file)
        splits = {n: self._map_classes(n, *item) for n, item in named.items()}
        self._require_all_classes(splits["train"])
        if self.val != "val" and self.val not in splits:
            raise ValueError(unknown_name("split for data.val:", self.val, splits))
        if self.val not in splits:
            splits["train"], splits["val"] = self._hold_out(splits["train"], known)
        else:
            splits["val"] = replace(splits.pop(self.val), name="val")
        if self.per_class is not None:
            splits["train"] = splits["train"].take(
                sample_per_class(splits["train"].labels, self.per_class, self.split_seed)
            )
        self.splits = {n: splits[n] for n in ("train", "val", "test") if n in splits}
        self.findings = checks.run_training_checks(scan.scan_splits(self.root, self.splits, self.classes, known))

    def _map_classes(self, name: str, keys: list[str], labels: list[str], load: ImageReader) -> Split:
        place = {c: i for i, c in enumerate(self.classes)}
        strange = sorted(set(labels) - set(place))
        if strange:
            raise ValueError(
                f"The {name} split has classes that train lacks: {', '.join(strange)}. "
                f"Train has {', '.join(self.classes[:10])}. Rename the folders, or leave some out with data.classes=[...]."
            )
        missing = [c for c in self.classes if c not in set(labels)]
        if missing and labels and name != "train":
            self.notes.append(f"The {name} split has no images of {', '.join(missing)}.")
        return Split(name, keys, [place[label] for label in labels], load)

    def _require_all_classes(self, train: Split) -> None:
        empty = [c for c, n in train.counts(self.classes).items() if n == 0]
        if empty:
            raise ValueError(
                f"There are no readable training images of {', '.join(empty)} in {self.root}. Add some, remove the "
                f"folder, or leave the class out with data.classes. Pictures are {' '.join(sorted(listing.EXTENSIONS))}."
            )

    def _hold_out(self, train: Split, known: Mapping[str, ImageInfo]) -> tuple[Split, Split]:
        groups = content_groups(train, known)
        held = stratified_holdout(train.labels, groups, self.val_fraction, self.split_seed)
        if not held:
            raise ValueError(
                f"{len(train)} training images are too few to hold out data.val_fraction={self.val_fraction} of each class."
            )
        self.notes.append(
            f"The data have no val split: {len(held)} of {len(train)} training images are held out (split.csv lists them)."
        )
        kept = [i for i in range(len(train)) if i not in held]
        return train.take(kept), train.take(sorted(held), "val")

    # --- loaders -----------------------------------------------------------------------------------------------

    @property
    def final_preprocess(self) -> Preprocess:
        """The preprocessing with `image_size`."""
        return (self.preprocess or Preprocess()).updated({"size": self.image_size})

    def class_weights(self) -> list[float]:
        """Inverse frequency in the training images, with a mean of 1 over images."""
        counts = self.splits["train"].counts(self.classes)
        total = len(self.splits["train"])
        return [total / (len(counts) * n) for n in counts.values()]

    def _on_cpu(self) -> bool:
        trainer: Any = self.trainer
        return trainer is None or trainer.strategy.root_device.type == "cpu"

    @property
    def evaluation_batch(self) -> int:
        """Images at a time where nothing learns: it changes no result, and small batches are slow.

        On a CPU 8 are as fast as 32, and take a quarter of the memory.
        """
        return max(8 if self._on_cpu() else min(64, 4 * self.batch_size), self.batch_size)

    def workers(self) -> int:
        """Processes per loader."""
        if self.num_workers != "auto":
            return int(self.num_workers)
        return hardware.default_num_workers(len(self.splits["train"]), self._on_cpu(), processes=self._rank()[1])

    @property
    def augmentation(self) -> str:
        """What "auto" stands for in the epochs in which images are augmented."""
        return "basic" if self.augment == "auto" else self.augment

    def augments(self, epoch: int) -> bool:
        """Whether the training images of an epoch are changed at random."""
        return self.augmentation != "none" and not (self.augment == "auto" and epoch < self.plain_epochs)

    def _train_set(self) -> loaders.ImageDataset:
        plain = self.final_preprocess.eval_transform()
        if self.augmentation == "none":
            return loaders.ImageDataset(self._kept("train"), plain)
        augmented = self.final_preprocess.train_transform(self.augmentation)
        plain_epochs = self.plain_epochs if self.augment == "auto" else 0
        return loaders.ImageDataset(self._kept("train"), plain, augmented, self.seed, plain_epochs)

    def _evaluation_set(self, name: str) -> loaders.ImageDataset:
        return loaders.ImageDataset(self._kept(name), self.final_preprocess.eval_transform())

    def _kept(self, name: str) -> Split:
        """A split whose pixels are kept once they are decoded, where `cache_images` says so."""
        split = self.splits[name]
        return replace(split, load=self._kept_pixels[name]) if name in self._kept_pixels else split

    def keep_pixels(self, epochs: int) -> str:
        """Settle whether decoded pixels are kept for a run that sees them in so many epochs; says so in words."""
        parts = [split for name, split in self.splits.items() if name != "test"]
        budget = hardware.free_memory() // 4 // self._rank()[1]
        self._kept_pixels, said = pixel_cache.cache_pixels(parts, self.cache_images, epochs, self.cache, budget)
        return said

    def train_dataloader(self) -> Any:
        """Shuffled anew every epoch, augmented: uint8 images (N, 3, size, size) and labels (N,).

        FineTuner normalises them; for another module, see `Preprocess.normalize`.
        """
        dataset = self._train_set()
        order = loaders.EpochSampler(len(dataset), self.seed, self._current_epoch, *self._rank())
        batches = loaders.BalancedBatchSampler(order, self.batch_size, done=self._batches_done)
        return self._or_features("train", self._loader(dataset, batch_sampler=batches), batches)

    def batch_keys(self, batch_idx: int) -> list[str]:
        """The images of a batch of the current epoch, of this process."""
        split = self.splits["train"]
        order = loaders.EpochSampler(len(split), self.seed, self._current_epoch, *self._rank())
        batch: Any = next(islice(loaders.BalancedBatchSampler(order, self.batch_size), batch_idx, None))
        return [split.keys[i] for _, i in batch]

    def val_dataloader(self) -> Any:
        """In order, each image once over all processes."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> Any:
        """In order, each image once over all processes."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, name: str) -> Any:
        if name not in self.splits:
            raise ValueError(unknown_name("split", name, self.splits))
        dataset = self._evaluation_set(name)
        # no padding to equal lengths: it would count some images twice
        mine = list(range(len(dataset)))[self._rank()[0] :: self._rank()[1]]
        size = self.evaluation_batch
        batches = [[(0, i) for i in mine[k : k + size]] for k in range(0, len(mine), size)]
        return self._or_features(name, self._loader(dataset, batch_sampler=batches), batches)

    def _or_features(self, name: str, loader: DataLoader[Any], batches: Any) -> Any:
        """The pixels, or features in the epochs for which there are some."""
        cached = self.cached
        if cached is None or name == "test":
            return loader
        file, views = (cached.train, cached.views) if name == "train" else (cached.val, 1)
        kept = feature_store.FeatureLoader(file, self.splits[name].labels, batches, views)
        return loaders.SwitchableLoader(kept, loader, lambda: self._fits() and self._current_epoch() < cached.until)

    def in_order(self, name: str, views: int = 1) -> Iterator[Tensor]:
        """The uint8 images of a split in batches, in order, once for each view (an epoch's augmentation)."""
        dataset = self._train_set() if name == "train" else self._evaluation_set(name)
        everything = [(view, i) for view in range(views) for i in range(len(dataset))]
        size = self.evaluation_batch
        batches = [everything[k : k + size] for k in range(0, len(everything), size)]
        for batch, _ in self._loader(dataset, batch_sampler=batches, persistent_workers=False):
            yield batch

    def first_image(self, name: str) -> Tensor:
        """The first of `in_order`, (1, 3, size, size)."""
        dataset = self._train_set() if name == "train" else self._evaluation_set(name)
        return loaders.collate([dataset[0, 0]])[0]

    def description(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data: where they are, and which images were held out."""
        self._described = self._described or {
            "root": str(self.root.absolute()) if self.root is not None else None,
            "dataset": getattr(self.dataset, "func", self.dataset).__name__ if self.dataset else None,
            "digest": digest(self.splits.values()),
            "splits": {name: describe_split(split) for name, split in self.splits.items() if name != "train"},
        }
        return self._described

    def fingerprint(self, name: str) -> str:
        """A digest of the images of a split: of their files' names, sizes and times, not of their contents."""
        return fingerprint(self.splits[name], self.root)

    def sample(self, count: int) -> tuple[Tensor, list[int]]:
        """The first images of the first epoch as the network will see them: uint8 (N, 3, H, W), and their labels."""
        dataset = self._train_set()
        order = list(loaders.EpochSampler(len(dataset), self.seed, lambda: 0))[:count]
        batch, labels = loaders.collate([dataset[index] for index in order])
        return batch, labels.tolist()

    def _loader(self, dataset: loaders.ImageDataset, **options: Any) -> DataLoader[Any]:
        workers = self.workers()
        if workers:
            self._require_shared_memory(workers)
        options = {
            "persistent_workers": workers > 0,
            "timeout": WORKER_TIMEOUT_S if workers else 0,
            "worker_init_fn": loaders.ignore_signals,
            "pin_memory": torch.cuda.is_available() and not self._on_cpu(),
            **options,
        }
        return loaders.WorkerDataLoader(dataset, num_workers=workers, collate_fn=loaders.collate, **options)

    def _require_shared_memory(self, workers: int) -> None:
        """Without enough of it a worker loses a batch without a word, and everyone waits for ever."""
        images = self.batch_size + self.evaluation_batch  # the loaders of both splits keep their workers
        needed = 2 * workers * self._rank()[1] * images * 3 * self.final_preprocess.size**2
        free = hardware.free_shared_memory()
        if free < needed:
            raise ValueError(
                f"data.num_workers={workers} needs {needed / 2**20:.0f} MiB of shared memory, and /dev/shm has "
                f"{free / 2**20:.0f} left: data.num_workers=0 needs none, and docker run --shm-size=1g gives more."
            )

    def _fits(self) -> bool:
        trainer: Any = self.trainer
        return trainer is not None and trainer.state.fn == TrainerFn.FITTING

    def _current_epoch(self) -> int:
        # epoch_progress, and not current_epoch: the iterator of an epoch is made before Lightning counts it
        trainer: Any = self.trainer
        return int(trainer.fit_loop.epoch_progress.current.processed) if trainer is not None else 0

    def _batches_done(self) -> int:
        """How many batches of the current epoch are behind a run that was interrupted in it."""
        trainer: Any = self.trainer
        if trainer is None or not trainer.fit_loop.epoch_loop.restarting:
            return 0
        epochs = trainer.fit_loop.epoch_progress.current
        in_the_middle = epochs.started > epochs.processed
        return int(trainer.fit_loop.epoch_loop.batch_progress.current.processed) if in_the_middle else 0

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
