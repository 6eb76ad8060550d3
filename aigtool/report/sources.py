"""Finding what other commands wrote, and reading it."""

import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from aigtool.analysis.comparison import DIFFERENCE, FIGURES
from aigtool.analysis.training_plots import RATE
from aigtool.errors import UserError
from aigtool.report.gates import GateTables, read_tables
from aigtool.trace import ExecutionTrace, load_trace
from aigtool.training.config import read_settings
from aigtool.training.run_folder import read_metrics

TRACE = ".parquet"

Read = TypeVar("Read")


@dataclass(frozen=True)
class Run:
    """A run of finetune.

    Attributes:
        metrics: A row an epoch.
        settings: What ``config.yaml`` says; empty where there is none.
    """

    metrics: pd.DataFrame
    settings: dict[str, Any]

    @property
    def has_gates(self) -> bool:
        """Whether what was trained has gates."""
        return any(str(name).startswith(RATE) for name in self.metrics)

    @property
    def tells_classes(self) -> bool:
        """Whether its gates were trained to tell classes apart."""
        options = self.settings.get("options", {})
        about_classes = options.get("information_about") == "class"
        return self.has_gates and about_classes and bool(options.get("information"))


@dataclass(frozen=True)
class Attack:
    """What ``aigtool attack`` measured.

    Attributes:
        data: On which images.
        rows: Accuracies, a row a case.
        compute: Attacks on compute.
        checks: Sanity checks.
        gates: What gates did; empty where its table is not beside.
        told_at: The epsilon of checks and pictures.
        target: What targeted attacks want for an answer, if they are.
        examples: A picture of attacked images, if there is one.
    """

    data: str
    rows: pd.DataFrame
    compute: pd.DataFrame
    checks: pd.DataFrame
    gates: pd.DataFrame
    told_at: float
    target: int | str | None
    examples: Path | None


@dataclass(frozen=True)
class Sweep:
    """What ``aigtool sweep`` came to: a row a run, a row a target, and on which images."""

    data: str
    runs: pd.DataFrame
    targets: pd.DataFrame


@dataclass(frozen=True)
class File:
    """A file that was read: what it is, and when it was written."""

    path: str
    what: str
    size: int
    written: str


@dataclass
class Results:
    """What was found, each thing by a short name.

    Attributes:
        runs: Run folders.
        traces: Execution traces.
        analyses: The tables of analyses.
        comparisons: Rows of traces compared.
        attacks: What attacks left.
        benches: Rows of seconds.
        sweeps: Sweeps.
        files: What was read.
    """

    runs: dict[str, Run] = field(default_factory=dict)
    traces: dict[str, ExecutionTrace] = field(default_factory=dict)
    analyses: dict[str, GateTables] = field(default_factory=dict)
    comparisons: dict[str, pd.DataFrame] = field(default_factory=dict)
    attacks: dict[str, Attack] = field(default_factory=dict)
    benches: dict[str, pd.DataFrame] = field(default_factory=dict)
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    files: list[File] = field(default_factory=list)


def find_results(paths: Sequence[str | Path]) -> Results:
    """Read all that is found in folders, and in the folders in them.

    Args:
        paths: Folders that other commands wrote, or that hold such; traces; or single files of
            those that tell a folder's kind.

    Raises:
        UserError: A path is missing or holds nothing that a page is made of, or a file is not what
            its name says.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> trace.save(folder / "test.parquet")
        >>> find_results([folder]).traces.keys() == {f"{folder.name}/test"}
        True
    """
    given = (file for path in paths for file in _files_in(Path(path)))
    found = list(dict.fromkeys(file.parent.resolve() / file.name for file in given))
    folders = {file.parent for file in found}
    root = Path(os.path.commonpath(folders))
    results = Results()
    for file in found:
        what, read = _KINDS[_kind(file)]
        told = _told(file, folders).relative_to(root.parent)
        read(results, told.as_posix(), file)
        state = file.stat()
        written = datetime.fromtimestamp(state.st_mtime, timezone.utc).strftime("%Y-%m-%d %H:%M")
        results.files.append(File(str(file), what, state.st_size, written))
    return results


def _files_in(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise UserError(
            f"{path}: no such file or folder; expected what finetune, analyze, attack, bench, "
            "sweep or evaluate wrote"
        )
    folders = [path, *sorted(path.iterdir())] if path.is_dir() else []
    files = [file for at in folders if at.is_dir() for file in sorted(at.iterdir())] or [path]
    known = [file for file in files if file.is_file() and _kind(file) in _KINDS]
    if not known:
        raise UserError(
            f"{path}: nothing there that a page is made of; expected a folder that finetune, "
            "analyze (of many images), attack, bench or sweep wrote, a folder of such, or a trace "
            "(.parquet)"
        )
    yield from known


def _kind(file: Path) -> str:
    return TRACE if file.suffix == TRACE else file.name


def _told(file: Path, folders: Collection[Path]) -> Path:
    """Return what a file tells of: a trace of itself, all else of its folder.

    A trace beside a folder of its name keeps its suffix, by which the two are told apart.
    """
    if file.suffix != TRACE:
        return file.parent
    bare = file.with_suffix("")
    return file if bare in folders else bare


def _whole(file: Path, command: str, read: Callable[[Path], Read]) -> Read:
    """Read a file of which more is expected than its name."""
    try:
        return read(file)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"{file} is not whole, or not what aigtool {command} writes ({why}): run that again, "
            "or leave the folder out"
        ) from error


def _table(rows: pd.DataFrame, **types: type) -> pd.DataFrame:
    """Return a table that has these columns, of these types, a row at least, and sound counts."""
    if rows.empty:
        raise ValueError("no rows")
    table = rows.astype(types)
    if "correct" in types:
        images, correct = table["images"], table["correct"]
        if not ((images > 0) & correct.between(0, images)).all():
            raise ValueError(
                "expected images in each row, and no more of them right than there are"
            )
    return table


def _read_run(results: Results, name: str, file: Path) -> None:
    config = file.with_name("config.yaml")
    metrics = _whole(file, "finetune", read_metrics)
    settings = read_settings(config) if config.is_file() else {}
    if not isinstance(settings.get("versions", {}), dict):
        raise UserError(
            f"{config}: versions is {settings['versions']!r}: expected a map, as aigtool finetune "
            "writes it; delete the line, or leave the folder out"
        )
    results.runs[name] = Run(metrics, settings)


def _read_trace(results: Results, name: str, file: Path) -> None:
    trace = load_trace(file)
    if trace.images.empty:
        raise UserError(f"trace {file} is of no image: expected one at least")
    results.traces[name] = trace


def _read_analysis(results: Results, name: str, file: Path) -> None:
    results.analyses[name] = _whole(file.parent, "analyze", read_tables)


def _read_comparison(results: Results, name: str, file: Path) -> None:
    figures = (*FIGURES, *DIFFERENCE)
    numbers = {name: float for name in figures if name not in ("correct", "images")}

    def read(path: Path) -> pd.DataFrame:
        rows = pd.read_csv(path, dtype={"trace": str}, keep_default_na=False, na_values=[""])
        return _table(rows, trace=str, correct=int, images=int, **numbers)

    results.comparisons[name] = _whole(file, "analyze", read)


def _read_attack(results: Results, name: str, file: Path) -> None:
    of_rows = dict.fromkeys(("epsilon", "top1", "gflops_executed", "quality", "steps"), float)
    of_costs = dict.fromkeys(("epsilon", "gflops_dense", "gflops_clean", "gflops_attacked"), float)
    of_costs |= dict.fromkeys(("gflops_worst", "saving_destroyed", "answers_kept"), float)
    of_gates = dict.fromkeys(("epsilon", "execution_rate", "gate_agreement"), float)
    of_checks = {"correct": int, "images": int, "other": float, "passed": bool, "name": str}
    beside = file.with_name("gates.csv"), file.with_name("examples.png")

    def read(path: Path) -> Attack:
        told = json.loads(path.read_text())
        counts: dict[str, type] = {"correct": int, "images": int}
        gates = pd.read_csv(beside[0]) if beside[0].is_file() else pd.DataFrame()
        return Attack(
            str(told["data"]),
            _table(_named(pd.DataFrame(told["rows"]), _CASE), **counts, **of_rows),
            _optional(pd.DataFrame(told["compute"]), **counts, **of_costs),
            _optional(_named(pd.DataFrame(told["checks"]), _CASE[:2]), **of_checks),
            _optional(_named(gates, (*_CASE, "group", "gate")), images=int, **of_gates),
            float(told["told_at"]),
            told["target"],
            beside[1] if beside[1].is_file() else None,
        )

    results.attacks[name] = _whole(file, "attack", read)


_CASE = ("network", "gate_gradient", "attack", "norm", "defense", "attacker")


def _named(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return a table whose columns of names are of text, empty where there is no name."""
    if rows.empty:
        return rows
    return rows.assign(**{name: rows[name].fillna("").astype(str) for name in columns})


def _optional(rows: pd.DataFrame, **types: type) -> pd.DataFrame:
    return rows if rows.empty else _table(rows, **types)


def _read_bench(results: Results, name: str, file: Path) -> None:
    times = ("dense", "open", "closed", "gated", "gated_iqr", "ideal")
    shares = ("efficiency", "speedup", "execution_rate", "gated_flops_fraction")
    numbers = dict.fromkeys((*(f"{time}_ms" for time in times), *shares), float)
    texts = dict.fromkeys(("engine", "device", "dtype"), str)

    def read(path: Path) -> pd.DataFrame:
        rows = _table(pd.read_csv(path), batch_size=int, threads=int, **numbers, **texts)
        if (rows["batch_size"] < 1).any():
            raise ValueError("expected a batch_size of one or more in each row")
        return rows

    results.benches[name] = _whole(file, "bench", read)


def _read_sweep(results: Results, name: str, file: Path) -> None:
    numbers = dict.fromkeys(("top1", "gflops_executed", "target", "correct", "images"), float)

    def read(path: Path) -> Sweep:
        told = json.loads(path.read_text())
        of_runs = {"network": str, "unit": str, "seed": float, "top1_stderr": float}
        runs = _table(pd.DataFrame(told["runs"]), **of_runs, **numbers)
        targets = _table(pd.DataFrame(told["targets"]), unit=str, runs=int, **numbers)
        return Sweep(str(told["data"]), runs, targets)

    results.sweeps[name] = _whole(file, "sweep", read)


_KINDS: dict[str, tuple[str, Callable[[Results, str, Path], None]]] = {
    "metrics.csv": ("metrics of a run, and config.yaml beside it", _read_run),
    TRACE: ("execution trace", _read_trace),
    "analysis.json": ("findings of an analysis, and the tables beside it", _read_analysis),
    "comparison.csv": ("traces compared", _read_comparison),
    "attack.json": ("accuracy under attack", _read_attack),
    "bench.csv": ("seconds", _read_bench),
    "sweep.json": ("several budgets and seeds", _read_sweep),
}
