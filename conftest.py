"""What docstring examples and tests find ready."""

import os
from importlib.util import find_spec

os.environ["HF_HUB_OFFLINE"] = "1"  # before timm is imported: no test may wait for a hub
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is: each worker has one core
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd
import pytest
import torch

if not torch.cuda.is_available():  # before Triton is imported: its interpreter runs kernels then
    os.environ["TRITON_INTERPRET"] = "1"

from aigtool.flops import BlockFlops, NetworkFlops
from aigtool.trace import ExecutionTrace

collect_ignore = [] if find_spec("triton") else ["aigtool/kernels.py"]


@pytest.fixture
def small_trace() -> ExecutionTrace:
    """Four images, two classes, two gates."""
    blocks = tuple(BlockFlops(name, 0.4, True, 0.4, 0.001, 100) for name in ("first", "last"))
    images = pd.DataFrame(
        {
            "index": range(4),
            "file": [f"{i}.png" for i in range(4)],
            "label": [0, 0, 1, 1],
            "prediction": [0, 1, 1, 1],
            "label_rank": [0, 1, 0, 0],
            "confidence": [0.9, 0.6, 0.8, 0.7],
            "loss": [0.1, 0.9, 0.2, 0.4],
        }
    )
    return ExecutionTrace(
        images=images,
        executed=np.array([[True, False], [True, False], [True, False], [True, True]]),
        probability=np.full((4, 2), 0.75, dtype=np.float32),
        flops=NetworkFlops(1.0, 1000, blocks),
        policy="argmax",
        targets=(None, None),
        classes=("cat", "dog"),
        source="example",
        seconds=0.5,
    )


@pytest.fixture(autouse=True)
def _example_trace(doctest_namespace: dict[str, object], small_trace: ExecutionTrace) -> None:
    doctest_namespace["trace"] = small_trace
