"""Serve folders, tables and torchvision data sets as images with class names: the LightningDataModule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader

from finetune.checkpoints.metadata import DataRecord
from finetune.data import grouping, loaders, pixel_cache, sampling, sources, splitting, trainer_state
from finetune.data.image_options import ImageOptions
from finetune.data.readers import read_with
from finetune.data.splits import Split, digest, fingerprint, sample_content
from finetune.data.splitting import SplitOptions
from finetune.data.transforms import ImageTransforms, Transform, to_pixels
from finetune.images import info
from finetune.images.info import ImageInfo
from finetune.images.transforms import Preprocess
from finetune.io import download, formats
from finetune.io.store import Cache
from finetune.runtime import hardware, process
from finetune.runtime.suggestions import require_known, unknown_name

CACHE_IMAGES = ("auto", "ram", "disk", "off")


class FeatureSource(Protocol):
    """Features in place of pixels, for the epochs in which a trunk is frozen."""

    def loader(self, split: str, epoch: int, labels: Sequence[int], batches: Any) -> Any | None:
        """Return what gives an epoch its features; None where it needs pixels."""

    def record(self) -> dict[str, Any]:
        """Return what the record of a run says of them."""


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
        layout: str = "auto",
        class_depth: int | str = "auto",
        columns: Mapping[str, str | None] | None = None,
        images: str | Path | None = None,
        val: str | None = None,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        group: str | None = None,
        folds: int | None = None,
        fold: int = 0,
        classes: Sequence[str] | None = None,
        per_class: int | None = None,
        sampler: str = "none",
        batch_size: int = 32,
        num_workers: int | str = "auto",
        image_size: int | None = None,
        resize: str | None = None,
        depth: str | Sequence[float] = "auto",
        max_pixels: int | None = None,
        augment: str = "auto",
        random_erasing: float = 0.0,
        flip: bool | str = "auto",
        train_transform: Transform | None = None,
        eval_transform: Transform | None = None,
        cache_images: str = "auto",
        on_bad_file: str = "skip",
        preprocess: Preprocess | None = None,
        loader: Callable[[str], Tensor] | None = None,
        seed: int = 0,
        cache_dir: str | Path | None = None,
        cache_gib: float | None = None,
    ) -> None:
        """Name the data; nothing is read before `prepare()` or `fit`.

        Args:
            root: a folder with train/ and val|valid|validation/ and test/ (the last two optional) or with a folder per
                class, a table (.csv, .tsv, .jsonl, .parquet) with the columns path, label and (optional) split, the export
                of a labelling tool, or a .zip or .tar of one of these.
            dataset: a torchvision data set's class or a partial of it, instead of a folder.
            splits: for `dataset`, the arguments that make each split: {"train": {"train": True}, "test": ...}.
            url: where to fetch `root` from if it does not exist.
            sha1: of the archive at `url`.
            sha256: of the archive at `url`.
            tree_sha256: of the extracted files, see `download.tree_digest`.
            layout: how a folder is read: "classes" (a folder per class), "splits" (train/ and others, with a folder per
                class each), "inside_out" (a folder per class, with train/ and others in each), or "auto".
            class_depth: which level of nested folders names the class, counted from 1, "leaf" for the innermost one, or
                "auto".
            columns: which column of a table is what: {"path": "image_id", "label": "breed", "split": "fold", "group":
                "patient_id"}; the usual names are found without it, and None says that there is none.
            images: the folder that a table's paths are relative to, if it is neither the table's own nor `root`.
            val: the split to validate on instead of "val".
            val_fraction: share of train held out, by class, where there is no such split.
            split_seed: of that share, and of the folds.
            group: what keeps images on one side of every split: a column of the table, or a regular expression on the
                path of each image, whose first group (or whole match) names the group.
            folds: divide the training images, stratified by class, into so many folds and validate on one of them.
            fold: which, counted from 0.
            classes: keep only these.
            per_class: keep only this many training images of each class.
            sampler: "balanced" draws every class equally often, "sqrt" by the square root of its frequency, "none" every
                image once an epoch.
            batch_size: images a step and process.
            num_workers: processes that decode images; "auto" looks at the cores and the number of images.
            image_size: pixels; None is the preprocessing's own.
            resize: how an image becomes square: "crop" (its middle), "squash" (both sides to the size) or "pad" (all of
                it, and the mean colour beside it); None is the preprocessing's own, "crop" for published weights.
            depth: counts of grey of more than 8 bits that become black and white: "auto" (those of the weights, where
                they come from a run on such images, else those of the training images, without the outermost
                `depth.TAIL` per cent of each), "full" (all of 16 bits, with the sign of the training images) or
                [low, high]. Images that are no files need one of the last two.
            max_pixels: larger images are refused; None is `decode.MAX_PIXELS`.
            augment: "none", "basic", "trivial", "rand", "augmix", or none in the epochs in which a FineTuner's trunk is
                frozen and in others basic ("auto") or light ("light": crops of at least half of an image).
            random_erasing: probability with which a rectangle of an augmented image is filled with the mean colour.
            flip: whether half of the augmented images are mirrored. "auto" is yes; but where a solved head takes mirrored
                training images for those of other classes (digits, arrows), it is no.
            train_transform: augmentation of your own in place of `augment`, in every epoch: any function of uint8 pixels
                (3, H, W) to an image (C, size, size), uint8 or normalised floats; torchvision's v2 transforms are such.
                Random numbers of torch, numpy and Python are seeded for each image.
            eval_transform: the same in place of resizing and cropping, for every image that is not augmented. A
                checkpoint cannot hold it: `evaluate` and `predict` use the checkpoint's preprocessing.
            cache_images: keep decoded pixels, for runs that need them in every epoch: "ram", "disk" (between runs
                too), "off", or "auto": in memory where they take less than a quarter of what is free.
            on_bad_file: "skip" leaves unreadable files out and lists them, "error" stops.
            preprocess: what the network needs; None takes it from the FineTuner that the Trainer fits.
            loader: a function that reads a file, for images of other channels or depths than 8-bit grey and RGB: path to
                pixels (C, H, W), uint8, or float32 in 0..1. Files are not scanned then: one that it cannot read ends the
                run. A folder's files are still those with the endings of images (`formats.extensions()`); a table may name
                any file. It must be picklable where worker processes are started afresh.
            seed: of order and augmentation.
            cache_dir: where features and pixels are kept; None is `~/.cache/finetune`.
            cache_gib: how much may be kept there; None is 20.

        Raises:
            ValueError: an unknown choice, or a number out of range.
        """
        super().__init__()
        self.transforms = ImageTransforms(augment, random_erasing, train_transform, eval_transform, flip)
        self.root = Path(root).expanduser() if root is not None else None
        self.dataset, self.split_arguments = dataset, splits
        self.archive = download.Archive(url, sha1=sha1, sha256=sha256, tree_sha256=tree_sha256) if url else None
        folder = Path(images).expanduser() if images else None
        self.reading = sources.ReadOptions(layout, class_depth, columns, folder, group)
        names = [str(c) for c in classes] if classes else None
        share = (val or "val", val_fraction, split_seed)
        self.splitting = SplitOptions(*share, names, per_class, on_bad_file, group, folds, fold)
        self.batch_size, self.num_workers, self.sampler, self.seed = batch_size, num_workers, sampler, seed
        self.image_size, self.preprocess = image_size, preprocess
        self.image_options = ImageOptions(resize, depth, max_pixels)
        self.loader, self.cache_images, self.cache = loader, cache_images, Cache(cache_dir, cache_gib)
        self._forget()
        self._require_choices()
        self._require_loader()

    def _forget(self) -> None:
        """Begin without images and without a network."""
        self.features: FeatureSource | None = None
        """Features in place of pixels, while a FineTuner's fit uses them."""
        self._network_preprocess: Preprocess | None = None
        self.unaugmented_epochs = 0
        """With augment="auto" or "light", the first epochs in which images are not augmented."""
        self.classes: list[str] = []
        self.splits: dict[str, Split] = {}
        self.image_info: dict[str, ImageInfo] = {}
        """Of every file, by path."""
        self.bad_files: dict[str, str] = {}
        self.notes: list[str] = []
        """What a person should know of the data: what was left out, what was split."""
        self._pixels: dict[str, pixel_cache.PixelCache] = {}
        self._fingerprints: dict[str, str] = {}
        self._record: DataRecord | None = None

    def _require_choices(self) -> None:
        """Refuse unknown words and numbers out of range."""
        require_known("data.cache_images", self.cache_images, CACHE_IMAGES)
        require_known("data.sampler", self.sampler, sampling.SAMPLERS)
        if self.batch_size < 1:
            raise ValueError(f"data.batch_size must be 1 or more, got {self.batch_size}.")

    # --- finding the images ------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Fetch the data if their folder does not exist. Lightning calls it in one process a machine."""
        if self.dataset is not None:
            self.source().prepare()
        elif self.root is not None and not self.root.exists() and self.archive is not None:
            download.fetch(self.archive, self.root)

    def source(self) -> sources.Source:
        """Return where the images are found.

        Raises:
            ValueError: neither a root nor a data set was given.
            FileNotFoundError: there is no such folder.
        """
        return sources.open_source(self.root, self.dataset, self.split_arguments, self.reading, self.cache)

    def setup(self, stage: str | None = None) -> None:
        """Find files, classes and splits; the same in every process."""
        trainer_state.require_own_sampler(self.trainer)
        if not self.splits:
            source = self.source()
            found = grouping.with_groups(source.splits(), self.splitting.group)
            paths = splitting.all_paths(found)
            if self.loader is None:
                self.image_info = info.scan_images(paths, self.root, self.cache, max_pixels=self.image_options.limit)
            else:
                found = read_with(found, self.loader)
                self.image_info = info.hash_files(paths)
            result = splitting.split_images(found, self.splitting, self.image_info, self.root)
            self.image_options = self.image_options.with_range_of(result.splits, self.image_info, self.final_preprocess)
            self.classes, self.splits, self.bad_files = result.classes, result.splits, result.bad_files
            own = type(self).training_order is not ImageDataModule.training_order
            draw = sampling.describe_epoch(self.splits["train"].labels, self.classes, self.sampler, own)
            skipped = formats.note_on_skipped_files(source.skipped_files)
            self.notes = [*source.notes, *skipped, *result.notes, *draw]
            self._decode_splits()
        self.teardown()

    def _decode_splits(self) -> None:
        options, preprocess = self.image_options, self.final_preprocess
        self.splits = options.decode_splits(self.splits, preprocess)
        self.image_options, self.notes = options.with_notes(self.notes, self.splits, self.image_info, preprocess)

    def adapt_to(self, classes: Sequence[str], preprocess: Preprocess, unaugmented_epochs: int) -> Preprocess:
        """Take from a network what the images depend on; `FineTuner.setup` calls it, for each network anew.

        Args:
            classes: of the network.
            preprocess: of its weights, used where none was given.
            unaugmented_epochs: with augment="auto" or "light", the first epochs without augmentation.

        Returns:
            The preprocessing that images really get: what was given to the data wins, `image_size` included.

        Raises:
            ValueError: the network has other classes than the data.
        """
        self._network_preprocess = preprocess
        self._require_loader()
        self.unaugmented_epochs = unaugmented_epochs
        if list(classes) != self.classes:
            raise ValueError(
                f"The module has the classes {list(classes)}, the data have {self.classes}. "
                "Build it with classes=data.classes."
            )
        self._decode_splits()
        return self.final_preprocess

    def _require_loader(self) -> None:
        """Refuse images of channels that files are not decoded to, and a loader of images that are no files."""
        if self.loader is not None and self.dataset is not None:
            raise ValueError("loader= reads files, and dataset= reads its images itself: give one of them.")
        channels = self.final_preprocess.channels
        if self.loader is None and channels not in (1, 3):
            raise ValueError(
                f"The network takes images of {channels} channels, and files are decoded to 1 or 3: give "
                "ImageDataModule(root, loader=...), a function that takes a path and returns pixels (C, H, W)."
            )

    def teardown(self, stage: str | None = None) -> None:
        """Release features and cached pixels: they belong to one fit."""
        self.features, self._pixels, self._fingerprints = None, {}, {}
        self.cache.in_use.clear()

    def prepare(self) -> ImageDataModule:
        """Fetch and find the data now, to know the classes before the network is built."""
        self.prepare_data()
        self.setup()
        return self

    def record(self) -> DataRecord:
        """Return what a checkpoint keeps of the data: where they are, which were held out, hashes of the others."""
        if self._record is None:
            train = self.splits["train"]
            files = None if train.load.paths is None else [self.image_info[path] for path in train.load.paths]
            self._record = DataRecord(
                root=str(self.root.absolute()) if self.root is not None else None,
                dataset=getattr(self.dataset, "func", self.dataset).__name__ if self.dataset else None,
                digest=digest(self.splits.values()),
                splits={name: split.record() for name, split in self.splits.items() if name != "train" and len(split)},
                loader=None if self.loader is None else str(getattr(self.loader, "__qualname__", type(self.loader))),
                content=sample_content(train),
                max_pixels=self.image_options.max_pixels,
                trained_on=None if files is None else info.short_hashes([f.sha1 for f in files]),
                phashes=None
                if files is None or self.loader
                else info.short_hashes([f.phash for f in files if f.phash]),
            )
        return replace(self._record, flip=self.transforms.known_flip)

    # --- what an epoch needs -----------------------------------------------------------------------------------

    @property
    def final_preprocess(self) -> Preprocess:
        """Return the preprocessing that was given, else the network's, with what was given beside it."""
        own = self.preprocess or self._network_preprocess or Preprocess()
        return self.image_options.applied_to(own.updated({"size": self.image_size}))

    def class_weights(self) -> list[float]:
        """Return the inverse frequency of each class in the training images, with a mean of 1 over images."""
        counts = self.splits["train"].counts(self.classes)
        total = len(self.splits["train"])
        return [total / (len(counts) * n) for n in counts.values()]

    @property
    def evaluation_batch(self) -> int:
        """Return how many images a batch has where nothing is trained: no result depends on it, small ones are slow.

        On a CPU 8 are as fast as 32, and take a quarter of the memory.
        """
        return max(8 if trainer_state.on_cpu(self.trainer) else min(64, 4 * self.batch_size), self.batch_size)

    def workers(self) -> int:
        """Return the number of worker processes of a loader."""
        if self.num_workers != "auto":
            return int(self.num_workers)
        processes = process.processes_on_these_cores(trainer_state.rank(self.trainer)[1])
        return hardware.default_num_workers(len(self.splits["train"]), trainer_state.on_cpu(self.trainer), processes)

    @property
    def augment(self) -> str:
        """Return the augmentation as it was given, by name."""
        return self.transforms.augment

    def augments(self, epoch: int) -> bool:
        """Return whether the training images of an epoch, counted from 0, are changed at random."""
        first = self.transforms.first_augmented_epoch(self.unaugmented_epochs)
        return first is not None and epoch >= first

    def cache_pixels(self, epochs: int) -> str:
        """Decide whether decoded pixels are kept for a run that needs them in so many epochs; return a sentence."""
        if self.loader is not None:  # the cache holds RGB bytes
            return "read again in every epoch, by the loader" if epochs > 1 else ""
        parts = [split for name, split in self.splits.items() if name != "test"]
        budget = hardware.free_memory() // 4 // trainer_state.rank(self.trainer)[1]
        self._pixels, text = pixel_cache.cache_pixels(
            parts, self.image_info, self.cache_images, epochs, self.cache, budget
        )
        return text

    def fingerprint(self, name: str) -> str:
        """Return a digest of the images of a split, computed once for a fit; see `splits.fingerprint`.

        Raises:
            ValueError: reading an image twice gives different pixels.
        """
        if name not in self._fingerprints:
            self._fingerprints[name] = fingerprint(self.splits[name])
        return self._fingerprints[name]

    # --- loaders -----------------------------------------------------------------------------------------------

    def training_order(self, epoch: int) -> Sequence[int]:
        """Return the positions of an epoch's training images; override it for a sampler of your own, which wins.

        It must depend on the epoch alone, and give as many in each. Images may be repeated or left out.
        """
        return sampling.draw_epoch(self.splits["train"].labels, self.sampler, self.seed, epoch)

    def _checked_order(self, epoch: int) -> list[int]:
        order, count = [int(position) for position in self.training_order(epoch)], len(self.splits["train"])
        if not order or not 0 <= min(order) <= max(order) < count:
            found = f"{min(order)} to {max(order)}" if order else "none"
            raise ValueError(
                f"training_order({epoch}) gives the positions {found}; there are {count} training images, from 0 on."
            )
        return order

    def train_dataloader(self) -> Any:
        """Return shuffled and augmented batches: uint8 images (N, 3, size, size) and labels (N,).

        FineTuner normalises them; for another module, see `Preprocess.normalize`.
        """
        return self._switchable("train", self._training_batches(done=lambda: trainer_state.batches_done(self.trainer)))

    def val_dataloader(self) -> Any:
        """Return the batches in order, each image once over all processes."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> Any:
        """Return the batches in order, each image once over all processes."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> Any:
        """Return the batches of `test_dataloader`, or of `val_dataloader` where there is no test split.

        `trainer.predict(module, datamodule=data)` gives a FineTuner's probabilities (N, classes) for each, in one process
        in the order of `data.splits["test"].keys`.
        """
        return self._evaluation_loader("test" if "test" in self.splits else "val")

    def _evaluation_loader(self, name: str) -> Any:
        if name not in self.splits:
            raise ValueError(unknown_name("split", name, self.splits))
        rank, world = trainer_state.rank(self.trainer)
        # no padding to equal lengths: it would count some images twice
        mine = range(len(self.splits[name]))[rank::world]
        return self._switchable(name, loaders.in_order(((0, i) for i in mine), self.evaluation_batch))

    def _switchable(self, name: str, batches: Any) -> loaders.SwitchableLoader:
        def features() -> Any | None:
            trainer: Any = self.trainer
            fits = trainer is not None and trainer.state.fn == TrainerFn.FITTING
            if self.features is None or not fits:
                return None
            return self.features.loader(
                name, trainer_state.current_epoch(self.trainer), self.splits[name].labels, batches
            )

        return loaders.SwitchableLoader(lambda: len(batches), features, lambda: self._loader(name, batches))

    def _training_batches(self, done: Callable[[], int] = lambda: 0) -> loaders.BalancedBatchSampler:
        order = loaders.EpochSampler(
            self._checked_order, lambda: trainer_state.current_epoch(self.trainer), *trainer_state.rank(self.trainer)
        )
        return loaders.BalancedBatchSampler(order, self.batch_size, done=done)

    def batch_keys(self, batch_idx: int) -> list[str]:
        """Return the names of the images of a batch of the current epoch, of this process."""
        batch: Any = next(islice(self._training_batches(), batch_idx, None))
        return [self.splits["train"].keys[i] for _, i, *_ in batch]

    def iterate_split(self, name: str, views: int = 1, positions: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Yield the uint8 images of a split in batches, in order: without augmentation, or once for each of several views.

        A view has the augmentation of an epoch, the first view that of the first. `positions` are those of some images.
        """
        epochs = range(views) if views > 1 else (loaders.NEVER_AUGMENTED,)
        every = ((epoch, i) for epoch in epochs for i in positions or range(len(self.splits[name])))
        for images, _ in self._loader(name, loaders.in_order(every, self.evaluation_batch), persistent=False):
            yield images

    def first_image(self, name: str, views: int = 1) -> Tensor:
        """Return the first image of `iterate_split`, (1, 3, size, size)."""
        return loaders.collate([self.image_dataset(name)[0 if views > 1 else loaders.NEVER_AUGMENTED, 0]])[0]

    def sample(self, count: int) -> tuple[Tensor, list[int]]:
        """Return the first images of the first epoch as the network gets them: uint8 (N, 3, H, W), and their labels."""
        dataset = self.image_dataset("train")
        order = list(loaders.EpochSampler(self._checked_order, lambda: 0))[:count]
        images, labels = loaders.collate([dataset[index] for index in order])
        return to_pixels(images, self.final_preprocess), labels.tolist()

    def image_dataset(self, name: str) -> loaders.ImageDataset:
        """Return a split as transformed images and labels, for a loader of your own; see `loaders.ImageDataset`."""
        split = self.splits[name]
        if name in self._pixels:
            split = replace(split, load=self._pixels[name])
        plain = self.transforms.for_evaluation(self.final_preprocess)
        augmented = self.transforms.for_training(self.final_preprocess) if name == "train" else None
        unaugmented = self.transforms.first_augmented_epoch(self.unaugmented_epochs) or 0
        return loaders.ImageDataset(split, plain, augmented, self.seed, unaugmented)

    def _loader(self, name: str, batches: Any, persistent: bool = True) -> DataLoader[Any]:
        num_workers, dataset = self.workers(), self.image_dataset(name)
        if num_workers and self.transforms.has_own:
            self.transforms.require_picklable()
            _ = dataset[dataset.unaugmented_epochs, 0]  # what fails here would be hard to read from a worker process
        if self.transforms.evaluation is not None:
            self.transforms.require_repeatable(dataset.plain, dataset.split.load(0))
        images = self.batch_size + self.evaluation_batch  # the loaders of both splits keep their workers
        return loaders.make_loader(
            dataset,
            batches,
            num_workers,
            batch_bytes=images * self._image_bytes,
            processes=trainer_state.rank(self.trainer)[1],
            persistent_workers=persistent and num_workers > 0,
            pin_memory=torch.cuda.is_available() and not trainer_state.on_cpu(self.trainer),
        )

    @property
    def _image_bytes(self) -> int:
        preprocess, floats = self.final_preprocess, self.loader is not None or self.transforms.has_own
        return preprocess.channels * preprocess.size**2 * (4 if floats else 1)
