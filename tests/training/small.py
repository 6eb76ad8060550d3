"""A short run on small images, which several tests take."""

from aigtool.models.description import InputSpec
from aigtool.training.config import FinetuneConfig

SPEC = InputSpec(size=(3, 32, 32), crop_pct=1.0)
# Certainty's weight grows in a run, so that epochs' losses would not compare; nine clipped steps
# would get nowhere.
FAST = FinetuneConfig(
    gate_start="given",
    aug_repeats=1,
    epochs=3,
    batch_size=8,
    lr=0.01,
    gate_lr=0.1,
    information=4.0,
    certainty=0.0,
    clip_grad=0.0,
    norm_statistics="batch",
)
FILES = {
    "best.safetensors",
    "config.yaml",
    "dense.safetensors",
    "last.ckpt",
    "metrics.csv",
    "training.png",
}
"""What a finished run of a gated network leaves."""
