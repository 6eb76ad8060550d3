"""Imports go down the floors, and the command line starts light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import aigtool

PACKAGE = Path(aigtool.__file__).parent
FLOORS = (
    ("__main__",),
    ("cli",),
    ("report",),
    ("training",),
    ("analysis",),
    ("robustness",),
    ("inference",),
    ("trace", "calibration"),
    ("budget",),
    ("flops",),
    ("data",),
    ("models",),
    ("losses",),
    ("conversion",),
    ("selection",),
    ("discovery",),
    ("rehearsal",),
    ("blocks",),
    ("gates", "graphs"),
    ("device", "intervals", "modes", "output", "picking", "plotting"),
    ("gpu",),
    ("kernels",),
    ("errors", "launch", "version"),
)
HEIGHT = {room: -floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports within the package are absolute"
            module = node.module or ""
            modules = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in modules if name.startswith("aigtool.")}
    return rooms


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down(path: Path) -> None:
    own = room(path)
    for other in imported_rooms(path) - {own}:
        assert HEIGHT[other] < HEIGHT[own], f"{own} must not import {other}"


def test_no_module_bears_the_name_of_a_public_function() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    modules |= {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert not modules & set(aigtool.__all__)


def test_every_public_name_is_there() -> None:
    for name in aigtool.__all__:
        assert getattr(aigtool, name) is not None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["finetune", "--help"],
        ["finetune", "--no-such-option"],
        ["evaluate", "model.safetensors"],
        ["attack", "m.safetensors", "--data", "d", "--epsilons=-1"],
        ["finetune", "m.safetensors", "--data", "d", "--target-rate", "1.2"],
        ["no-such-command"],
    ],
)
def test_help_and_wrong_options_do_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from aigtool.cli.main import run; "
        f"code = run({arguments!r}); "
        "print('torch' in sys.modules, 'timm' in sys.modules, 'pandas' in sys.modules, code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = 0 if "--help" in arguments else 2
    assert done.stdout.splitlines()[-1] == f"False False False {expected}"
