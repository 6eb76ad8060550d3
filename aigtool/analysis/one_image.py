"""What one image executes, block by block."""

import numpy as np
import pandas as pd

from aigtool.flops import NetworkFlops
from aigtool.inference.answers import Answers


def block_table(answers: Answers, flops: NetworkFlops) -> pd.DataFrame:
    """Return a row a residual block, in the order of execution, for the first image of a batch.

    Columns ``block``, ``gated``, ``executed`` (true without a gate), ``probability`` (the gate's,
    of executing; not a number without one), ``gflops`` (what the block took, its gate included).

    Args:
        answers: What a served network answered.
        flops: Its counts.

    Example:
        >>> import torch
        >>> from aigtool.flops import BlockFlops
        >>> blocks = (BlockFlops("a", 0.4, True, 0.3, 0.01, 5), BlockFlops("b", 0.2))
        >>> answers = Answers(torch.zeros(1, 2), torch.zeros(1, 1), torch.tensor([[False]]))
        >>> block_table(answers, NetworkFlops(1.0, 10, blocks))
          block  gated  executed  probability  gflops
        0     a   True     False          0.5    0.11
        1     b  False      True          NaN    0.20
    """
    frame = pd.DataFrame(
        {
            "block": [block.name for block in flops.blocks],
            "gated": [block.gated for block in flops.blocks],
            "executed": True,
            "probability": np.nan,
            "gflops": [block.gflops + block.gate for block in flops.blocks],
        }
    )
    gated = frame["gated"].to_numpy()
    executed = answers.executed[0].numpy()
    frame.loc[gated, "executed"] = executed
    frame.loc[gated, "probability"] = answers.gate_logits[0].sigmoid().numpy()
    saved = np.array([block.skippable for block in flops.gated_blocks])
    frame.loc[gated, "gflops"] -= np.where(executed, 0.0, saved)
    return frame
