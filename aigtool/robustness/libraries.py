"""Attacks by name: ours, and those of two libraries that a network and an epsilon can build."""

import inspect
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from aigtool.data.seeding import seeded
from aigtool.errors import UserError
from aigtool.robustness.attacks import frozen_weights
from aigtool.robustness.balls import BALLS, Ball
from aigtool.robustness.suite import Attack, Fgsm, Noise, Pgd

LIBRARIES = ("foolbox", "torchattacks")
OWN: dict[str, type[Fgsm | Pgd | Noise]] = {kind.name: kind for kind in (Fgsm, Pgd, Noise)}
_GAVE_UP = (AssertionError, IndexError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True)
class Listed:
    """An attack of a library.

    Attributes:
        name: Such as ``foolbox:LinfPGD``.
        norms: By which it can be held to an epsilon; none if it cannot be run.
        is_least: Whether it looks for the least distance at which an answer turns, which is then
            compared with each epsilon, rather than for the most harm within an epsilon.
        refused: Why it cannot be run, if it cannot.
    """

    name: str
    norms: tuple[str, ...] = ()
    is_least: bool = False
    refused: str = ""


class _LibraryAttack(Attack):
    """What holds for all: an image that went too far, or was not found, stays as it was."""

    def __init__(self, listed: Listed, ball: Ball, kind: type) -> None:
        self.name, self.ball, self.kind = listed.name, ball, kind
        self.is_least = listed.is_least

    def moved(
        self,
        network: nn.Module,
        pixels: Tensor,
        labels: Tensor,
        epsilons: Sequence[float],
        *,
        seed: int = 0,
    ) -> list[Tensor]:
        """Run it once, if it looks for the least distance, or else once for each epsilon."""
        try:
            with frozen_weights(network), torch.enable_grad():
                found = [
                    self._found(_Plain(network), pixels, labels, epsilon, seed)
                    for epsilon in (epsilons[:1] if self.is_least else epsilons)
                ]
        except torch.OutOfMemoryError:
            raise
        except _GAVE_UP as error:
            why = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"attack {self.name} gave up ({why}): expected one that can ask this network about "
                "these images; leave it out"
            ) from error
        every = found * len(epsilons) if self.is_least else found
        return [self._held(pixels, x, e) for x, e in zip(every, epsilons, strict=True)]

    def _found(
        self, network: nn.Module, pixels: Tensor, labels: Tensor, epsilon: float, seed: int
    ) -> Tensor:
        with seeded(seed, self.name, device=pixels.device):
            return self._run(network, pixels, labels, epsilon).detach()

    @abstractmethod
    def _run(
        self, network: nn.Module, pixels: Tensor, labels: Tensor, epsilon: float
    ) -> Tensor: ...

    def _held(self, pixels: Tensor, moved: Tensor, epsilon: float) -> Tensor:
        lengths = self.ball.lengths(moved - pixels)
        # Libraries round their steps, and a length is a sum of many squares.
        is_within = lengths <= epsilon * (1 + 1e-5) + 1e-6
        return torch.where(is_within.view(-1, *[1] * (pixels.ndim - 1)), moved, pixels).clamp(0, 1)


class _Plain(nn.Module):
    """A network whose gradients lie in memory as the pixels do, which libraries take for given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, pixels: Tensor) -> Tensor:
        output: Tensor = self.network(_PlainGradient.apply(pixels))
        return output


class _PlainGradient(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, pixels: Tensor) -> Tensor:
        return pixels.view_as(pixels)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()


class _Foolbox(_LibraryAttack):
    def _run(self, network: nn.Module, pixels: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        from foolbox import criteria, distances
        from foolbox.models.pytorch import PyTorchModel

        model = PyTorchModel(network, bounds=(0, 1), device=pixels.device)
        takes_distance = "distance" in inspect.signature(self.kind).parameters
        distance = {"distance": getattr(distances, self.ball.norm)}
        attack = self.kind(**distance if takes_distance and self.is_least else {})
        _, moved, success = attack(
            model,
            pixels,
            criteria.Misclassification(labels),
            epsilons=None if self.is_least else epsilon,
        )
        found: Tensor = moved.where(success.view(-1, *[1] * (pixels.ndim - 1)), pixels)
        return found if self.is_least else moved


class _Torchattacks(_LibraryAttack):
    def _run(self, network: nn.Module, pixels: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        options: dict[str, Any] = {}
        known = inspect.signature(self.kind).parameters
        if size := next((name for name in _SIZES if name in known), None):
            options[size] = epsilon
        if "norm" in known:
            options["norm"] = _NORMS[self.ball.norm]
        if "n_classes" in known:
            with torch.no_grad():
                options["n_classes"] = network(pixels[:1]).shape[1]
        moved: Tensor = self.kind(network, **options)(pixels, labels)
        return moved


_SIZES = ("eps", "max_epsilon")
"""What torchattacks calls an epsilon."""
_NORMS = {"linf": "Linf", "l2": "L2"}
"""What it calls norms."""


def check_attack(name: str) -> None:
    """Refuse a name that is none of ours and of no library's form.

    Raises:
        UserError: With the names that are near.

    Example:
        >>> check_attack("pgd")
        >>> check_attack("pdg")
        Traceback (most recent call last):
        ...
        aigtool.errors.UserError: attack 'pdg': expected fgsm, pgd, noise, foolbox:NAME or ...
    """
    if name in OWN or name.partition(":")[0] in LIBRARIES:
        return
    known = [*OWN]
    for library in LIBRARIES:
        if find_spec(library):
            known += [one.name for one in library_attacks(library) if not one.refused]
    hint = _near(name, known)
    raise UserError(
        f"attack {name!r}: expected {', '.join(OWN)}, foolbox:NAME or torchattacks:NAME; {hint}"
    )


def _near(name: str, known: Iterable[str]) -> str:
    """Tell which names are near, whatever library they are of."""
    short = {full.rpartition(":")[2].lower(): full for full in reversed([*known])}
    near = get_close_matches(name.rpartition(":")[2].lower(), short, n=3)
    return f"near are {', '.join(short[one] for one in near)}" if near else "see --attack list"


def library_attack(name: str, ball: Ball | None = None) -> Attack:
    """Return an attack of foolbox or torchattacks by its name.

    Where the library's attack looks for the least distance at which an answer turns, an image that
    it found within an epsilon is the attacked one, and else the clean one is. A result farther than
    epsilon from its image counts as none: the clean image stays.

    Args:
        name: Such as ``foolbox:LinfPGD`` or ``torchattacks:AutoAttack``.
        ball: By which norm an epsilon is meant; by default the attack's own, the largest change of
            a pixel where it takes either.

    Raises:
        UserError: There is no such library or attack, it is not installed, or the attack cannot be
            built from a network and an epsilon, or not by that norm.

    Example:
        >>> library_attack("foolbox:L2DeepFoolAttack").ball.norm
        'l2'
        >>> library_attack("foolbox:LinfPDG")
        Traceback (most recent call last):
        ...
        aigtool.errors.UserError: attack foolbox:LinfPDG: foolbox has none of that name; near are \
foolbox:LinfPGD, ...
    """
    library = name.partition(":")[0]
    listed = {one.name: one for one in library_attacks(library)}
    if name not in listed:
        hint = _near(name, listed)
        raise UserError(f"attack {name}: {library} has none of that name; {hint}")
    found = listed[name]
    if found.refused:
        raise UserError(f"attack {name} {found.refused}: expected one of --attack list")
    if ball and ball.norm not in found.norms:
        raise UserError(
            f"attack {name} goes by {' and '.join(found.norms)}, given {ball.norm}: leave --norm "
            "out, or take another attack"
        )
    taken = ball or BALLS[found.norms[0]]
    build = {"foolbox": _Foolbox, "torchattacks": _Torchattacks}[library]
    return build(found, taken, getattr(_module(library), name.partition(":")[2]))


def library_attacks(library: str) -> list[Listed]:
    """Return all attacks of a library, those too that cannot be run.

    Raises:
        UserError: There is no such library here, or it is not installed.

    Example:
        >>> {one.name: one for one in library_attacks("torchattacks")}["torchattacks:PGDL2"]
        Listed(name='torchattacks:PGDL2', norms=('l2',), is_least=False, refused='')
    """
    if library not in LIBRARIES:
        raise UserError(
            f"attack library {library!r}: expected {' or '.join(LIBRARIES)}, such as "
            "foolbox:LinfPGD"
        )
    module = _module(library)
    base, look = {
        "foolbox": (getattr(module, "Attack", None), _of_foolbox),
        "torchattacks": (getattr(getattr(module, "attack", None), "Attack", None), _of_torch),
    }[library]
    kinds = sorted((name, kind) for name, kind in vars(module).items() if inspect.isclass(kind))
    return [
        look(f"{library}:{name}", kind)
        for name, kind in kinds
        if base and issubclass(kind, base) and kind is not base
    ]


def _module(library: str) -> ModuleType:
    try:
        return import_module({"foolbox": "foolbox.attacks"}.get(library, library))
    except ImportError as error:
        raise UserError(
            f"{library} is not installed ({error}): install it with aigtool, such as pip install "
            f"'aigtool[{library}]'"
        ) from error


def _needed(kind: type, *given: str) -> list[str]:
    """Return the options without which a class cannot be built, but for those given."""
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [
        name
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in variadic
        and name not in given
    ]


_FEW_PIXELS = "moves few pixels by any amount"
_UNFIT = {
    "foolbox:BinarizationRefinementAttack": "needs points to start from",
    "foolbox:DatasetAttack": "needs to be fed with other images",
    "foolbox:GenAttack": "needs a target class",
    "foolbox:PointwiseAttack": "needs points to start from",
    "torchattacks:EADEN": "goes by l1 distance, not by linf or l2",
    "torchattacks:EADL1": "goes by l1 distance, not by linf or l2",
    "torchattacks:JSMA": _FEW_PIXELS,
    "torchattacks:OnePixel": _FEW_PIXELS,
    "torchattacks:Pixle": _FEW_PIXELS,
    "torchattacks:SparseFool": _FEW_PIXELS,
    "torchattacks:VANILA": "moves nothing",
}
"""What the signatures do not tell."""


def _of_foolbox(name: str, kind: type) -> Listed:
    from foolbox.attacks.base import FlexibleDistanceMinimizationAttack, MinimizationAttack

    if refused := _unfit(name, kind):
        return Listed(name, refused=refused)
    is_least = issubclass(kind, MinimizationAttack)
    if issubclass(kind, FlexibleDistanceMinimizationAttack):
        return Listed(name, ("linf", "l2"), is_least)
    try:
        distance = getattr(kind(), "distance", None)
    except ImportError as error:
        return Listed(name, refused=f"cannot be built here ({error})")
    norm = {float("inf"): "linf", 2.0: "l2"}.get(getattr(distance, "p", 0.0))
    if norm is None:
        return Listed(name, refused=f"goes by {distance or 'no distance'}, not by linf or l2")
    return Listed(name, (norm,), is_least)


def _of_torch(name: str, kind: type) -> Listed:
    if refused := _unfit(name, kind, "model"):
        return Listed(name, refused=refused)
    known = inspect.signature(kind).parameters
    if "norm" in known:
        return Listed(name, ("linf", "l2"))
    if name in ("torchattacks:CW", "torchattacks:DeepFool"):
        return Listed(name, ("l2",), is_least=True)
    if not {*_SIZES} & {*known}:
        return Listed(name, refused="takes no epsilon")
    return Listed(name, ("l2",) if name.endswith("L2") else ("linf",))


def _unfit(name: str, kind: type, *given: str) -> str:
    if needed := _needed(kind, *given):
        return f"needs {', '.join(needed)}"
    return _UNFIT.get(name, "is what others are made from" if inspect.isabstract(kind) else "")
