"""The ``data:`` part of the job file: where samples come from; all sources as one type, told apart by ``source``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from heliostat.data.download import RemoteFile, cache_folder
from heliostat.data.images import ImageData
from heliostat.data.locations import absolute
from heliostat.data.points import PointData
from heliostat.data.prepared.source import PreparedImages
from heliostat.data.samples import Progress
from heliostat.data.sequence_sources import ParallelText, Text
from heliostat.data.source import Cached, Location, Source
from heliostat.data.task_sources import Copy, InductionHeads, Passkey, Reverse, SelectiveCopying
from heliostat.data.video_sources import AtariClips, AtariFrames, BouncingShapes, MovingDigits, VideoFolder
from heliostat.errors import InputError


class Digits(Source):
    """The 1,797 handwritten digits that ship with scikit-learn: 8 x 8 grey pixels, 10 classes; nothing to download."""

    source: Literal["digits"]
    split: Literal["train", "test"]
    """``train`` has 1,437 images, ``test`` 360: a fixed split with equal shares of every class."""
    image_size: int | None = Field(default=None, gt=0)
    """Pixels of a side to which they are enlarged, such as 14 for sequences of 196 pixels. Null: 8, as they are."""

    def load(self, progress: Progress | None = None) -> ImageData:
        from heliostat.data.digits import load_digits

        return load_digits(self.split, self.image_size)


class Ring(Source):
    """Points from a mixture of Gaussians whose centres lie evenly on a circle, for GANs: generated, labelled by their
    Gaussian."""

    source: Literal["ring"]
    split: Literal["train", "test"]
    samples: int = Field(default=50_000, gt=0)
    """How many points."""
    modes: int = Field(default=8, gt=1)
    """How many Gaussians, of equal weight."""
    radius: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    """Of the circle."""
    deviation: float = Field(default=0.02, gt=0, allow_inf_nan=False)
    """Of each Gaussian in each direction."""

    def load(self, progress: Progress | None = None) -> PointData:
        from heliostat.data.points import ring

        return ring(self.split, samples=self.samples, modes=self.modes, radius=self.radius, deviation=self.deviation)


class ParquetImages(Source):
    """Encoded images in Parquet files, as on the Hugging Face hub."""

    source: Literal["parquet"]
    path: Location | Annotated[tuple[Location, ...], Field(min_length=1)]
    """A file, a folder of ``*.parquet`` files, or a list of both; local, or a URI such as ``s3://bucket/folder``."""
    image: str = "image"
    """The column of encoded images: ``struct<bytes: binary, path: string>`` or binary."""
    label: str | None = "label"
    """The column of labels, integers or strings; null for data without labels."""
    image_size: int | None = Field(default=None, gt=0)
    """Pixels: the shorter side is resized to it and the centre square cut out. Null: all have one size already."""
    channels: Literal[3, 1] = 3
    """3 for RGB, 1 for grey."""
    max_corrupt: float = Field(default=0.0, ge=0.0, le=1.0)
    """The share of images, 0 to 1, that may be impossible to decode; they are left out and named."""

    @property
    def paths(self) -> tuple[str, ...]:
        """``path`` as a list, always."""
        return (self.path,) if isinstance(self.path, str) else self.path

    def check(self) -> list[str]:
        from heliostat.data.parquet import ParquetTable

        try:
            return [str(problem) for problem in ParquetTable.open(self.paths).problems(self.image, self.label)]
        except InputError as error:
            return [str(problem) for problem in error.problems]

    def resolved(self) -> Self:
        path = absolute(self.path) if isinstance(self.path, str) else tuple(absolute(path) for path in self.path)
        return self.model_copy(update={"path": path})

    def load(self, progress: Progress | None = None) -> ImageData:
        from heliostat.data.parquet import ParquetTable

        return ParquetTable.open(self.paths).load(
            image=self.image,
            label=self.label,
            channels=self.channels,
            image_size=self.image_size,
            max_corrupt=self.max_corrupt,
            name=", ".join(self.paths),
            progress=progress,
        )


class ImageFolder(Source):
    """Image files, in one sub-folder per class (classes in sorted order) or in one flat folder without labels."""

    source: Literal["image-folder"]
    path: Location
    """A folder; local, or a URI such as ``s3://bucket/folder``."""
    image_size: int | None = Field(default=None, gt=0)
    """Pixels: the shorter side is resized to it and the centre square cut out. Null: all have one size already."""
    channels: Literal[3, 1] = 3
    """3 for RGB, 1 for grey."""
    max_corrupt: float = Field(default=0.0, ge=0.0, le=1.0)
    """The share of images, 0 to 1, that may be impossible to decode; they are left out and named."""

    def check(self) -> list[str]:
        from heliostat.data.image_folder import FolderListing

        try:
            FolderListing.read(self.path)
        except InputError as error:
            return [str(problem) for problem in error.problems]
        return []

    def resolved(self) -> Self:
        return self.model_copy(update={"path": absolute(self.path)})

    def load(self, progress: Progress | None = None) -> ImageData:
        from heliostat.data.image_folder import FolderListing

        return FolderListing.read(self.path).load(
            channels=self.channels, image_size=self.image_size, max_corrupt=self.max_corrupt, progress=progress
        )


class Download(Cached):
    """A published set that is downloaded into the cache folder once and verified by its checksum at every use."""


def _cifar(archive: Path, members: tuple[str, ...], names: str, label_bytes: int, name: str) -> ImageData:
    from heliostat.data.archives import cifar_records, class_names, read_members

    content = read_members(archive, (*members, names))
    images, labels = cifar_records(b"".join(content[member] for member in members), label_bytes, str(archive))
    return ImageData(images=images, labels=labels, classes=class_names(content[names]), name=name)


class Cifar10(Download):
    """CIFAR-10 (Krizhevsky 2009): 32 x 32 RGB, 10 classes, 50,000 and 10,000 images."""

    source: Literal["cifar10"]
    split: Literal["train", "test"]

    archive: ClassVar[RemoteFile] = RemoteFile(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "md5:c32a1d4ab5d03f1284b67883e8d87530"
    )

    def load(self, progress: Progress | None = None) -> ImageData:
        folder = "cifar-10-batches-bin"
        batches = [f"data_batch_{number}" for number in range(1, 6)] if self.split == "train" else ["test_batch"]
        members = tuple(f"{folder}/{batch}.bin" for batch in batches)
        archive = self.archive.fetch(cache_folder(self.cache), progress)
        return _cifar(archive, members, f"{folder}/batches.meta.txt", 1, f"cifar10/{self.split}")


class Cifar100(Download):
    """CIFAR-100 (Krizhevsky 2009): 32 x 32 RGB, 100 (fine) classes, 50,000 and 10,000 images."""

    source: Literal["cifar100"]
    split: Literal["train", "test"]

    archive: ClassVar[RemoteFile] = RemoteFile(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "md5:03b5dce01913d631647c71ecec9e9cb8"
    )

    def load(self, progress: Progress | None = None) -> ImageData:
        folder = "cifar-100-binary"
        archive = self.archive.fetch(cache_folder(self.cache), progress)
        members = (f"{folder}/{self.split}.bin",)
        return _cifar(archive, members, f"{folder}/fine_label_names.txt", 2, f"cifar100/{self.split}")


def _idx(
    files: tuple[RemoteFile, RemoteFile], folder: Path, classes: tuple[str, ...], name: str, progress: Progress | None
) -> ImageData:
    from heliostat.data.archives import read_idx

    pixels, labels = (read_idx(file.fetch(folder, progress)) for file in files)
    if pixels.ndim != 3 or labels.shape != pixels.shape[:1]:
        raise InputError(f"{name}: images {pixels.shape} and labels {labels.shape} do not belong together")
    return ImageData(images=pixels[:, None], labels=labels.astype(np.int64), classes=classes, name=name)


class MNIST(Download):
    """MNIST (LeCun, Cortes and Burges): 28 x 28 grey, 10 classes, 60,000 and 10,000 images.

    From the mirror that everybody uses: the authors' own address refuses programs.
    """

    source: Literal["mnist"]
    split: Literal["train", "test"]

    files: ClassVar[dict[str, tuple[RemoteFile, RemoteFile]]] = {
        "train": (
            RemoteFile(
                "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz",
                "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
            ),
            RemoteFile(
                "https://ossci-datasets.s3.amazonaws.com/mnist/train-labels-idx1-ubyte.gz",
                "md5:d53e105ee54ea40749a09fcbcd1e9432",
            ),
        ),
        "test": (
            RemoteFile(
                "https://ossci-datasets.s3.amazonaws.com/mnist/t10k-images-idx3-ubyte.gz",
                "md5:9fb629c4189551a2d022fa330f9573f3",
            ),
            RemoteFile(
                "https://ossci-datasets.s3.amazonaws.com/mnist/t10k-labels-idx1-ubyte.gz",
                "md5:ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
    }

    def load(self, progress: Progress | None = None) -> ImageData:
        folder = cache_folder(self.cache) / "mnist"
        return _idx(self.files[self.split], folder, tuple("0123456789"), f"mnist/{self.split}", progress)


class FashionMNIST(Download):
    """Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 28 x 28 grey, 10 classes, 60,000 and 10,000 images."""

    source: Literal["fashion-mnist"]
    split: Literal["train", "test"]

    files: ClassVar[dict[str, tuple[RemoteFile, RemoteFile]]] = {
        "train": (
            RemoteFile(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-images-idx3-ubyte.gz",
                "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            ),
            RemoteFile(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-labels-idx1-ubyte.gz",
                "md5:25c81989df183df01b3e8a0aad5dffbe",
            ),
        ),
        "test": (
            RemoteFile(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/t10k-images-idx3-ubyte.gz",
                "md5:bef4ecab320f06d8554ea6380940ec79",
            ),
            RemoteFile(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/t10k-labels-idx1-ubyte.gz",
                "md5:bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
    }
    classes: ClassVar[tuple[str, ...]] = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip

    def load(self, progress: Progress | None = None) -> ImageData:
        folder = cache_folder(self.cache) / "fashion-mnist"
        return _idx(self.files[self.split], folder, self.classes, f"fashion-mnist/{self.split}", progress)


class STL10(Download):
    """STL-10 (Coates, Ng and Lee 2011): 96 x 96 RGB, 10 classes; a download of 2.6 GB."""

    source: Literal["stl10"]
    split: Literal["train", "test", "unlabeled"]
    """``train`` has 5,000 images, ``test`` 8,000, ``unlabeled`` 100,000 (2.8 GB in memory) without labels."""

    archive: ClassVar[RemoteFile] = RemoteFile(
        "https://cs.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", "md5:91f7769df0f17e558f3565bffb0c7dfb"
    )

    def load(self, progress: Progress | None = None) -> ImageData:
        from heliostat.data.archives import class_names, read_members, stl10_images

        archive = self.archive.fetch(cache_folder(self.cache), progress)
        pixels, numbers, names = f"{self.split}_X.bin", f"{self.split}_y.bin", "class_names.txt"
        wanted = (pixels,) if self.split == "unlabeled" else (pixels, numbers, names)
        content = read_members(archive, tuple(f"stl10_binary/{name}" for name in wanted))
        images = stl10_images(content[f"stl10_binary/{pixels}"], str(archive))
        labels: npt.NDArray[np.int64] | None = None
        classes: tuple[str, ...] = ()
        if self.split != "unlabeled":
            labels = np.frombuffer(content[f"stl10_binary/{numbers}"], np.uint8).astype(np.int64) - 1  # stored from 1
            classes = class_names(content[f"stl10_binary/{names}"])
        return ImageData(images=images, labels=labels, classes=classes, name=f"stl10/{self.split}")


DataSource = Annotated[
    Digits
    | Ring
    | ParquetImages
    | ImageFolder
    | PreparedImages
    | Cifar10
    | Cifar100
    | MNIST
    | FashionMNIST
    | STL10
    | AtariFrames
    | AtariClips
    | MovingDigits
    | BouncingShapes
    | VideoFolder
    | Text
    | ParallelText
    | Copy
    | Reverse
    | SelectiveCopying
    | InductionHeads
    | Passkey,
    Field(discriminator="source"),
]
"""Any of them, as a field of a pydantic model."""
