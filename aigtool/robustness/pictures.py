"""Attacked images: some to look at, or all of them as files."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aigtool.conversion import gate_policy
from aigtool.output import replacing
from aigtool.robustness.cases import Attacked, Case, Judged
from aigtool.robustness.defenses import as_images

CLEAN = "clean"
"""The folder of images before an attack."""
_NAMED = re.compile(rf"({CLEAN}|[^/]+/[^/]+/[^/]+)/[^/]+/\d{{6}}-[^/]*\.png")
"""Paths that an ``ImageWriter`` writes, from its folder on."""


@dataclass(frozen=True)
class Example:
    """An image before and after an attack.

    Attributes:
        pixels: ``(C, H, W)`` in 0..1, before.
        moved: The same, after.
        label: What is right.
        answers: Before and after.
        confidences: The probabilities of the two.
    """

    pixels: Tensor
    moved: Tensor
    label: int
    answers: tuple[int, int]
    confidences: tuple[float, float]


class Examples:
    """Keeps some images of one case, to be drawn: a ``watch`` of ``attack_networks``.

    Args:
        judged: The network of the case.
        positions: Of the images to keep.
        is_wanted: Tells the case.

    Attributes:
        kept: What was seen.
        case: Of which they are.
    """

    def __init__(
        self, judged: Judged, positions: Collection[int], is_wanted: Callable[[Case], bool]
    ) -> None:
        self.judged, self.positions, self.is_wanted = judged, positions, is_wanted
        self.kept: list[Example] = []
        self.case: Case | None = None

    def __call__(self, batch: Attacked) -> None:
        """Keep those of a batch."""
        chosen = [i for i in range(len(batch.labels)) if batch.first + i in self.positions]
        if not chosen or not self.is_wanted(batch.case):
            return
        self.case = batch.case
        both = [images[chosen].detach() for images in (batch.pixels, batch.moved)]
        with torch.inference_mode(), gate_policy(self.judged.network, self.judged.policy):
            answered = [self.judged.network(images).softmax(1).max(1) for images in both]
        (sure, answer), (sure_after, answer_after) = answered
        pixels, moved = (images.cpu() for images in both)
        self.kept += [
            Example(
                pixels[i],
                moved[i],
                int(batch.labels[position]),
                (int(answer[i]), int(answer_after[i])),
                (float(sure[i]), float(sure_after[i])),
            )
            for i, position in enumerate(chosen)
        ]


class ImageWriter:
    """Writes attacked images as PNG, in a folder a class: a ``watch`` of ``attack_networks``.

    A case's folder is a data set of its own, which ``aigtool evaluate --data`` takes; so is
    ``clean``, with the images before, by the same names: traces of them can be compared.

    Args:
        folder: Where to.
        classes: Class names in the order of the labels; numbers by default.
        names: Of the files, by position.
    """

    def __init__(
        self, folder: Path, classes: Sequence[str] | None, names: Callable[[int], str]
    ) -> None:
        self.folder, self.classes, self.names = folder, classes, names
        self.written: set[Path] = set()

    def __call__(self, batch: Attacked) -> None:
        """Write a batch."""
        self._write(batch, batch.moved, self.folder.joinpath(*case_folder(batch.case)))
        self._write(batch, batch.pixels, self.folder / CLEAN)

    def _write(self, batch: Attacked, pixels: Tensor, root: Path) -> None:
        images = zip(as_images(pixels), batch.labels.tolist(), strict=True)
        for position, (image, label) in enumerate(images, batch.first):
            kind = str(label) if self.classes is None else self.classes[label]
            path = root / kind / f"{position:06d}-{Path(self.names(position)).stem}.png"
            if path not in self.written:
                with replacing(path) as temporary:
                    image.save(temporary)
                self.written.add(path)


def remove_images(folder: Path, but: Collection[Path] = ()) -> None:
    """Delete the images that an earlier run left in a folder, by their names; no others.

    Args:
        folder: Of an ``ImageWriter``.
        but: Those to keep.
    """
    for path in folder.rglob("*.png"):
        if path not in but and _NAMED.fullmatch(path.relative_to(folder).as_posix()):
            path.unlink()


def case_folder(case: Case) -> tuple[str, ...]:
    """Return where the images of a case go.

    Example:
        >>> case = Case("gated", "pgd", "linf", 20, "frozen", "jpeg", 75, "adaptive", 8 / 255)
        >>> case_folder(case)
        ('gated', 'pgd-frozen-jpeg75', '8of255')
    """
    parts = [case.attack.replace(":", "-"), *filter(None, [case.gate_gradient])]
    if case.attacker == "adaptive":
        parts.append(f"{case.defense}{case.quality or ''}")
    size = f"{255 * case.epsilon:g}of255" if case.norm == "linf" else f"{case.epsilon:g}"
    return case.network, "-".join(parts), size
