"""Files to predictions, as a stream."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from aigtool.data.decoding import read_image
from aigtool.data.images import Transform
from aigtool.errors import UserError
from aigtool.inference.answers import Answering


@dataclass(frozen=True)
class Prediction:
    """What a network said about one image, and what it took.

    Attributes:
        file: The image.
        label: The class's number.
        name: The class's name, or its number where names are not known.
        probability: Of the class.
        executed: By gate, whether its block was run.
        blocks: Residual blocks that were run, those without a gate included.
        gflops: Multiply-accumulates, gates included.
        milliseconds: The image's share of the time of its batch, without reading.
    """

    file: str
    label: int
    name: str
    probability: float
    executed: tuple[bool, ...]
    blocks: int
    gflops: float
    milliseconds: float


def find_images(given: Iterable[str], lines: Iterable[str] = ()) -> Iterator[str]:
    """Find the images that arguments name, one by one.

    Args:
        given: Files, folders (all images within, in order of their names), patterns such as
            ``photos/*.jpg``, and ``-`` for ``lines``.
        lines: A file a line.

    Raises:
        UserError: At once, if a pattern or a folder has no image.

    Example:
        >>> list(find_images(["-"], ["a.png", "", "b.png"]))
        ['a.png', 'b.png']
    """
    return chain.from_iterable([_named(name, lines) for name in given])


def _named(name: str, lines: Iterable[str]) -> Iterable[str]:
    if name == "-":
        return (line.rstrip("\r\n") for line in lines if line.strip())
    if name and Path(name).is_dir():
        return _some(_images_in(name), f"folder {name} has no images")
    if not has_magic(name) or Path(name).exists():
        return [name]
    found = sorted(glob(name, recursive=True))  # noqa: PTH207, a path's takes no absolute one
    return _some(iter(found), f"no file matches {name}")


def _some(files: Iterator[str], problem: str) -> Iterator[str]:
    first = next(files, None)
    if first is None:
        raise UserError(f"{problem}: expected files, folders, patterns or - for a list on stdin")
    return chain([first], files)


def _images_in(folder: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            if Path(file).suffix.lower() in IMG_EXTENSIONS:
                yield str(Path(place, file))


def predict(
    network: Answering,
    files: Iterable[str],
    transform: Transform,
    *,
    batch_size: int = 32,
    workers: int = 2,
    unreadable: Callable[[str], None],
) -> Iterator[Prediction]:
    """Ask a network about files, as a stream: a batch at a time is in memory.

    Args:
        network: Which to ask.
        files: Images.
        transform: Image to pixels.
        batch_size: Images a batch.
        workers: Threads that read images, ahead of the network; one at least.
        unreadable: Called with what is wrong with an image that cannot be read; it is left out.

    Yields:
        A prediction an image, in the order of the files.
    """
    workers = max(1, workers)
    pixels = _read(files, transform, workers, max(batch_size, 2 * workers), unreadable)
    is_cold = True
    while batch := list(islice(pixels, batch_size)):
        if is_cold:  # the first time is that of getting ready, and is nobody's
            network(batch[0][1][None])
            is_cold = False
        yield from _predict(network, [name for name, _ in batch], [image for _, image in batch])


def _read(
    files: Iterable[str],
    transform: Transform,
    workers: int,
    ahead: int,
    unreadable: Callable[[str], None],
) -> Iterator[tuple[str, Tensor]]:
    waiting: deque[tuple[str, Future[Tensor]]] = deque()

    def first() -> Iterator[tuple[str, Tensor]]:
        name, future = waiting.popleft()
        try:
            yield name, future.result()
        except UserError as error:
            unreadable(str(error))

    with ThreadPoolExecutor(workers) as pool:
        for file in files:
            waiting.append((file, pool.submit(lambda name: transform(read_image(name)), file)))
            if len(waiting) > ahead:
                yield from first()
        while waiting:
            yield from first()


def _predict(network: Answering, files: list[str], pixels: list[Tensor]) -> Iterator[Prediction]:
    start = time.perf_counter()
    answers = network(torch.stack(pixels))
    milliseconds = 1e3 * (time.perf_counter() - start) / len(files)
    probability, label = answers.logits.softmax(1).max(1)
    executed = answers.executed.numpy()
    names, flops = network.description.class_names, network.flops
    ungated = len(flops.blocks) - len(flops.gated_blocks)
    gflops = flops.executed(executed, network.description.policy)
    for row, file in enumerate(files):
        number = int(label[row])
        yield Prediction(
            file=file,
            label=number,
            name=str(number) if names is None else names[number],
            probability=float(probability[row]),
            executed=tuple(executed[row].tolist()),
            blocks=ungated + int(executed[row].sum()),
            gflops=float(gflops[row]),
            milliseconds=milliseconds,
        )
