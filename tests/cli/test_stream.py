"""A stream of images as long as you like, in one process."""

import re
import subprocess
import sys
from itertools import cycle, islice
from pathlib import Path
from threading import Thread

import pytest

IMAGES, SETTLED = 100_000, 2_000


@pytest.mark.stream
@pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="asks Linux what memory is used"
)
def test_a_hundred_thousand_images_need_no_memory(model: Path, image_folder: Path) -> None:
    names = [str(path) for path in sorted((image_folder / "test").rglob("*.png"))]
    command = [sys.executable, "-m", "aigtool", "predict", str(model), "-", "--format", "csv"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        lines = (f"{name}\n" for name in islice(cycle(names), IMAGES))
        feeder = Thread(
            target=lambda stdin: (stdin.writelines(lines), stdin.close()), args=[run.stdin]
        )
        feeder.start()
        before = peak = 0.0
        for number, _ in enumerate(run.stdout):
            if number == SETTLED:
                before = _megabytes(run.pid, "VmRSS")
            if number % 1000 == 1 and number < IMAGES - 1000:
                peak = max(peak, _megabytes(run.pid, "VmHWM"))
        feeder.join()
        assert number == IMAGES  # the first is the heading
        assert run.wait() == 0
    told = f"{before:.0f} MB after {SETTLED} images, at most {peak:.0f} MB by {IMAGES}"
    sys.stdout.write(f"\n{told}\n")
    assert peak - before <= 50, told


def _megabytes(process: int, kind: str) -> float:
    found = re.search(rf"{kind}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6
