import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigtool.errors import UserError
from aigtool.training.config import FinetuneConfig, noise_at


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_rate": 0.0}, "target rate 0"),
        ({"target_rate": 1.2}, "target rate 1.2"),
        ({"target_rate": math.nan}, "target rate nan"),
        ({"target": "block"}, "target 'block'"),
        ({"epochs": 0}, "epochs 0"),
        ({"batch_size": 0}, "batch size 0"),
        ({"lr": -1.0}, "lr -1"),
        ({"gate_lr": math.nan}, "gate lr nan"),
        ({"distill": 1.5}, "distill 1.5"),
        ({"hints": -1.0}, "hints -1"),
        ({"noise_hold": -0.1}, "noise hold -0.1"),
        ({"target_ramp": 1.5}, "target ramp 1.5: expected 0 to 1"),
        ({"gate_start": "open"}, "gate start 'open': expected one of pattern, given"),
        ({"gate_start": "pattern", "target": "per-layer"}, "pattern with targets per layer"),
        ({"gate_start": "pattern", "baseline": "stochastic-depth"}, "with baseline stochastic-dep"),
        ({"rate_weight": -1.0}, "rate weight -1"),
        ({"rate_weight": math.inf}, "rate weight inf"),
        ({"information_about": "pixel"}, "information about 'pixel': expected one of"),
        ({"band_low": -0.1}, "band low -0.1"),
        ({"band_high": 1.1}, "band high 1.1"),
        ({"rate_window": 0.0}, "rate window 0: expected a number above 0"),
        ({"gate_temperature": math.inf}, "gate temperature inf"),
        ({"gate_temperature_end": 0.0}, "gate temperature end 0"),
        ({"distill_temperature": math.inf}, "distill temperature inf"),
        ({"momentum": 1.5}, "momentum 1.5: expected 0 or more, and under 1"),
        ({"weight_decay": math.inf}, "weight decay inf"),
        ({"mixup": math.inf}, "mixup inf"),
        ({"workers": -1}, "workers -1: expected 0 or more"),
    ],
)
def test_values_out_of_range_are_told(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FinetuneConfig(**options)  # type: ignore[arg-type]


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_noise_never_rises_and_ends_at_zero(first: float, second: float, hold: float) -> None:
    early, late = sorted((first, second))
    assert 1 >= noise_at(early, hold) >= noise_at(late, hold) >= 0
    assert noise_at(0, hold) == 1
    assert noise_at(1, hold) == (1 if hold == 1 else 0)
    assert noise_at(late, hold, hold) == (1 if 0 < hold >= late else 0)
    assert noise_at(late, 0, 0) == 0


@pytest.mark.parametrize(
    ("options", "about", "start", "ramp"),
    [
        ({}, {}, "pattern", 0.0),
        ({"gate_start": "given"}, {}, "given", 0.15),
        ({"target_ramp": 0.3}, {}, "pattern", 0.3),
        ({"train": "gates"}, {}, "given", 0.15),
        ({"targets": "0.5,0.7"}, {}, "given", 0.15),
        ({"baseline": "stochastic-depth"}, {}, "given", 0.15),
        ({}, {"is_trained": False}, "given", 0.15),
        ({}, {"can_spare": False}, "given", 0.15),
        ({"gate_start": "pattern"}, {"is_trained": False}, "pattern", 0.0),
    ],
)
def test_new_gates_of_a_trained_network_start_at_a_pattern(
    options: dict[str, Any], about: dict[str, bool], start: str, ramp: float
) -> None:
    given = {"can_distill": True, "is_trained": True, **about}
    config = FinetuneConfig(**options).completed(**given)
    assert (config.gate_start, config.target_ramp) == (start, ramp)
