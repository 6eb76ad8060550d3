"""The public API on one screen."""

from .analysis.clustering import find_groups as find_groups
from .analysis.figures import (
    write_analysis as write_analysis,
)
from .analysis.figures import (
    write_comparison as write_comparison,
)
from .analysis.groups import compare_given as compare_given
from .analysis.permutation import compare_groups as compare_groups
from .analysis.rates import (
    blocks_executed as blocks_executed,
)
from .analysis.rates import (
    class_rates as class_rates,
)
from .analysis.rates import (
    gate_rates as gate_rates,
)
from .blocks import GatedBlock as GatedBlock
from .blocks import split as split
from .budget import Budget as Budget
from .calibration import Calibration as Calibration
from .calibration import calibrate as calibrate
from .calibration import calibrate_each as calibrate_each
from .conversion import (
    convert as convert,
)
from .conversion import (
    forced_decisions as forced_decisions,
)
from .conversion import (
    gate_policy as gate_policy,
)
from .conversion import (
    named_gates as named_gates,
)
from .conversion import (
    recorded_decisions as recorded_decisions,
)
from .conversion import (
    set_policy as set_policy,
)
from .conversion import (
    strip as strip,
)
from .data.augmentation import Augmentation as Augmentation
from .data.images import DataSource as DataSource
from .data.images import ImageSet as ImageSet
from .data.images import open_images as open_images
from .data.loading import (
    eval_transform as eval_transform,
)
from .data.loading import (
    load_batches as load_batches,
)
from .data.loading import (
    train_transform as train_transform,
)
from .device import find_device as find_device
from .discovery import Discovery as Discovery
from .discovery import find_blocks as find_blocks
from .errors import NonFiniteLossError as NonFiniteLossError
from .errors import UserError as UserError
from .flops import NetworkFlops as NetworkFlops
from .flops import count_flops as count_flops
from .gates import Decision as Decision
from .gates import Gate as Gate
from .gates import straight_through as straight_through
from .graphs import NotResidualError as NotResidualError
from .inference.answers import Answers as Answers
from .inference.answers import ServedNetwork as ServedNetwork
from .inference.serving import serve as serve
from .intervals import wilson_interval as wilson_interval
from .losses import (
    RunningRates as RunningRates,
)
from .losses import (
    decision_entropy as decision_entropy,
)
from .losses import (
    execution_rates as execution_rates,
)
from .losses import (
    information_loss as information_loss,
)
from .losses import (
    network_rate_loss as network_rate_loss,
)
from .losses import (
    per_layer_rate_loss as per_layer_rate_loss,
)
from .losses import (
    rate_band_loss as rate_band_loss,
)
from .models.description import (
    Description as Description,
)
from .models.description import (
    InputSpec as InputSpec,
)
from .models.description import (
    PixelNetwork as PixelNetwork,
)
from .models.files import Model as Model
from .models.files import load_model as load_model
from .models.files import save_model as save_model
from .models.origin import create_model as create_model
from .models.weights import load_weights as load_weights
from .models.zoo import (
    create_network as create_network,
)
from .models.zoo import (
    list_networks as list_networks,
)
from .rehearsal import ResidualBlock as ResidualBlock
from .report.page import write_report as write_report
from .robustness.attacks import fgsm as fgsm
from .robustness.attacks import frozen_gates as frozen_gates
from .robustness.attacks import noise as noise
from .robustness.attacks import pgd as pgd
from .robustness.balls import L2 as L2
from .robustness.balls import Ball as Ball
from .robustness.balls import Linf as Linf
from .robustness.cases import Judged as Judged
from .robustness.cases import Robustness as Robustness
from .robustness.compute import compute_attack as compute_attack
from .robustness.defenses import Defended as Defended
from .robustness.defenses import Defense as Defense
from .robustness.defenses import jpeg as jpeg
from .robustness.defenses import jpeg_defense as jpeg_defense
from .robustness.evaluation import attack_networks as attack_networks
from .robustness.evaluation import pixel_batches as pixel_batches
from .robustness.libraries import library_attack as library_attack
from .robustness.sanity import sanity_checks as sanity_checks
from .robustness.slowdown import attack_compute as attack_compute
from .robustness.suite import Attack as Attack
from .robustness.suite import Fgsm as Fgsm
from .robustness.suite import Noise as Noise
from .robustness.suite import Pgd as Pgd
from .robustness.tables import accuracy_rows as accuracy_rows
from .robustness.tables import gate_rows as gate_rows
from .selection import parse_targets as parse_targets
from .trace import (
    ExecutionTrace as ExecutionTrace,
)
from .trace import (
    accuracy_difference as accuracy_difference,
)
from .trace import (
    collect_trace as collect_trace,
)
from .trace import (
    load_trace as load_trace,
)
from .training.config import FinetuneConfig as FinetuneConfig
from .training.loop import finetune as finetune
from .training.sweep import Point as Point
from .training.sweep import run_points as run_points
from .version import __version__ as __version__
