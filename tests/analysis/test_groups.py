"""Groups that a user names: read, refused and compared."""

from pathlib import Path

import numpy as np
import pytest

from aigtool.analysis.groups import READY, compare_given, read_groups
from aigtool.errors import UserError
from aigtool.trace import ExecutionTrace
from tests.analysis.made import planted, traced

NAMES = [f"class {number}" for number in range(10)]


@pytest.fixture
def trace() -> ExecutionTrace:
    return traced(planted()[0], images=40, seed=0)


def test_a_files_groups_are_compared(trace: ExecutionTrace, tmp_path: Path) -> None:
    _, groups = planted()
    named = {kind: np.flatnonzero(np.array(groups) == kind).tolist() for kind in (0, 1)}
    file = tmp_path / "groups.yaml"
    file.write_text(
        "\n".join(f"{kind}: [{', '.join(NAMES[n] for n in named[kind])}]" for kind in (0, 1))
    )
    read = read_groups(file, trace.classes)
    assert read == {str(kind): [NAMES[n] for n in named[kind]] for kind in (0, 1)}
    assert compare_given(trace, read).p == 1 / 210


def test_classes_of_no_group_are_left_out(trace: ExecutionTrace) -> None:
    test = compare_given(trace, {"a": ["class 0", "class 3"], "b": ["class 1", "class 2"]})
    assert (test.labelings, test.least_p) == (6, 1 / 3)
    assert test.p == 1 / 3


def test_cifar10_is_two_groups_of_all_its_classes() -> None:
    groups = READY["cifar10"]
    assert [len(members) for members in groups.values()] == [6, 4]
    assert len({*groups["animals"], *groups["vehicles"]}) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; expected a YAML file, or one of cifar10"),
        ("a: [class 0", "is not YAML"),
        ("- class 0", "expected a group a line, such as 'animals: [cat, dog]'"),
        ("a: class 0", "expected a group a line"),
        ("a: []", "expected a group a line"),
        ("a: [class 0, class 1]", "expected two groups or more, one of them of two classes"),
        ("a: [class 0]\nb: [class 1]", "expected two groups or more, one of them of two classes"),
        (
            "a: [class 0, klass]\nb: [class 1]",
            "no class named klass; the classes are class 0, class 1",
        ),
        ("a: [class 0]\nb: [class 0, class 1]", "class class 0 twice; expected it in one group"),
    ],
)
def test_wrong_groups_are_told(text: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "groups.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as told:
        read_groups(file, NAMES)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_classes_without_names_have_no_groups(trace: ExecutionTrace) -> None:
    with pytest.raises(UserError, match="the classes have no names here"):
        read_groups("cifar10", None)
    with pytest.raises(UserError, match="1 groups of 2 classes: expected two groups or more"):
        compare_given(trace, {"a": ["class 0", "class 3"], "b": ["no image of it"]})
