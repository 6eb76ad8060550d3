"""Writing files so that a kill leaves the old file or the new one, never half of one."""

import errno
import json
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aigtool.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where no more can be written."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that is renamed onto it when the block succeeds.

    Args:
        path: The file to write or replace. Missing parent folders are made.

    Yields:
        The path to write to. It keeps the suffix of ``path``, since many writers choose a
        format by it.

    Raises:
        UserError: The folder cannot be made or written, the disk is full, or ``path`` is a device,
            pipe or socket.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replacing(folder / "a.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> (folder / "a.txt").read_text(), len(list(folder.iterdir()))
        ('whole', 1)
    """
    path = Path(path)
    _refuse_special(path)
    _make_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(f"output {path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def remove_others(folder: Path, names: Iterable[str], written: Collection[Path]) -> None:
    """Delete what an earlier run left in a folder, so that none of it is taken for this run's.

    Args:
        folder: Of this run.
        names: Of all files that such a run may write.
        written: Those that this one did.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("a.csv", "b.csv", "mine.csv"):
        ...     (folder / name).touch()
        >>> remove_others(folder, ["a.csv", "b.csv"], [folder / "b.csv"])
        >>> sorted(path.name for path in folder.iterdir())
        ['b.csv', 'mine.csv']
    """
    for path in (folder / name for name in names):
        if path not in written:
            path.unlink(missing_ok=True)


def records(rows: "pd.DataFrame") -> list[dict[str, Any]]:
    """Return a table's rows as plain dicts, with None where there is no value.

    Example:
        >>> import pandas as pd
        >>> records(pd.DataFrame({"quality": [75, None]}, dtype="Int64"))
        [{'quality': 75}, {'quality': None}]
    """
    plain = rows.astype(object).where(rows.notna(), None)
    return [{str(key): value for key, value in row.items()} for row in plain.to_dict("records")]


def check_output(
    path: str | Path, *, force: bool = False, folder: bool = False, suffix: str = ""
) -> Path:
    """Refuse an output that exists or cannot be written, before any work is spent on it.

    Args:
        path: What will be written.
        force: Whether an existing output may be replaced.
        folder: Whether it is a folder; an empty one counts as free.
        suffix: What its name must end in.

    Returns:
        ``path`` as a ``Path``.

    Raises:
        UserError: It exists and ``force`` is false, it is a file where a folder is expected or the
            other way round, it is a device, pipe or socket, its name has another suffix, or its
            folder cannot be written.

    Example:
        >>> check_output("/proc/out.safetensors")
        Traceback (most recent call last):
        ...
        aigtool.errors.UserError: output /proc/out.safetensors: the folder /proc cannot be ...
    """
    path = Path(path)
    _refuse_special(path)
    if path.exists() and path.is_dir() != folder:
        found, wanted = ("file", "folder") if folder else ("folder", "file")
        raise UserError(f"output {path} is a {found}: expected the name of a {wanted}")
    occupied = any(path.iterdir()) if path.is_dir() else path.exists()
    if occupied and not force:
        raise UserError(f"output {path} exists: choose another name, or pass --force to replace it")
    parent = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    parent = parent if folder or parent != path.absolute() else parent.parent
    if not parent.is_dir() or not _can_write(parent):
        raise UserError(
            f"output {path}: the folder {parent} cannot be written; choose another place"
        )
    if suffix and path.suffix != suffix:
        raise UserError(f"output {path}: expected a name that ends in {suffix}")
    return path


def _refuse_special(path: Path) -> None:
    """Refuse what is neither file nor folder: a renaming would replace it, /dev/null even."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(
            f"output {path} is a device, pipe or socket: expected the name of a file or folder"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {folder} cannot be made: {error.strerror}") from error


def _can_write(folder: Path) -> bool:
    """Whether a file can be made in ``folder``; root passes ``os.access`` where writing fails."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
