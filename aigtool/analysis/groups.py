"""Groups of classes that a user names, and what they execute."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from aigtool.analysis.permutation import GroupTest, compare_groups, profile_distances
from aigtool.analysis.rates import class_rates
from aigtool.errors import UserError
from aigtool.trace import ExecutionTrace

READY = {
    "cifar10": {
        "animals": ["bird", "cat", "deer", "dog", "frog", "horse"],
        "vehicles": ["airplane", "automobile", "ship", "truck"],
    }
}
"""Groups that have a name."""
EXAMPLE = "animals: [cat, dog]"


def read_groups(source: str | Path, classes: Sequence[str] | None) -> dict[str, list[str]]:
    """Return groups of classes by name: ready-made ones, or those of a YAML file.

    Args:
        source: A name in ``READY``, or a file that maps each group to a list of class names.
        classes: The names that there are.

    Raises:
        UserError: There is no such file, it is no such map, or a class is in two groups or not
            among the names.

    Example:
        >>> names = ["airplane", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
        >>> list(read_groups("cifar10", ["automobile", *names]))
        ['animals', 'vehicles']
        >>> read_groups("cifar10", names)
        Traceback (most recent call last):
        ...
        aigtool.errors.UserError: groups cifar10: no class named automobile; the classes are \
airplane, bird, cat, deer, dog, ...
    """
    if classes is None:
        raise UserError(
            f"groups {source}: the classes have no names here, by which groups are given; name "
            "them in the model file, or leave --groups out"
        )
    groups = READY[str(source)] if str(source) in READY else _read(Path(source))
    if len(groups) < 2 or max(map(len, groups.values())) < 2:
        raise UserError(
            f"groups {source}: expected two groups or more, one of them of two classes or more"
        )
    named = [name for members in groups.values() for name in members]
    known = f"the classes are {', '.join(classes[:5])}{', ...' * (len(classes) > 5)}"
    if unknown := [name for name in named if name not in classes]:
        raise UserError(f"groups {source}: no class named {', '.join(unknown[:3])}; {known}")
    if twice := [name for name, count in Counter(named).items() if count > 1]:
        raise UserError(f"groups {source}: class {twice[0]} twice; expected it in one group")
    return groups


def _read(file: Path) -> dict[str, list[str]]:
    example = f"expected a group a line, such as '{EXAMPLE}'"
    if not file.is_file():
        raise UserError(
            f"groups {file}: no such file; expected a YAML file, or one of {', '.join(READY)}"
        )
    try:
        found = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"groups {file} is not YAML: {example}") from error
    if not isinstance(found, dict):
        raise UserError(f"groups {file}: {example}")
    for name, members in found.items():
        if not isinstance(members, list) or not members:
            raise UserError(f"groups {file}: {name} is {members!r}, no list of classes; {example}")
    return {str(name): [str(member) for member in members] for name, members in found.items()}


def compare_given(trace: ExecutionTrace, groups: Mapping[str, Sequence[str]]) -> GroupTest:
    """Test groups that were given, over the classes that have images.

    Raises:
        UserError: Fewer than two groups have classes with images, or all have one.

    Example:
        >>> compare_given(trace, {"pets": ["cat"], "others": ["dog"]})
        Traceback (most recent call last):
        ...
        aigtool.errors.UserError: 2 groups of 2 classes: expected two groups or more, one of them \
of two classes or more
    """
    rates = class_rates(trace)
    group_of = {name: group for group, members in groups.items() for name in members}
    rates = rates[[name in group_of for name in rates.index]]
    numbers = np.unique([group_of[name] for name in rates.index], return_inverse=True)[1]
    return compare_groups(profile_distances(rates.to_numpy()), numbers.tolist())
