"""Training of upsamplers: settings, recipes, the loop, what it writes."""

from upfeat.training.cached_backbone import CachedBackbone
from upfeat.training.config import (
    BackboneConfig,
    CheckpointConfig,
    ClipConfig,
    DataConfig,
    DepthConfig,
    EmaConfig,
    LogConfig,
    MaskConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ScheduleConfig,
    StopConfig,
    TrainConfig,
    UpsamplerConfig,
)
from upfeat.training.contracts import Batch, BatchSource, Callback, StepReport, TrainResult
from upfeat.training.cost import CostEstimate, measure_cost
from upfeat.training.ema import WeightAverage
from upfeat.training.engine import Trainer
from upfeat.training.export import model_card
from upfeat.training.guard import LossGuard, TrainingFailedError
from upfeat.training.logs import CsvLog, Means, TensorBoardLog, read_log
from upfeat.training.overrides import apply_overrides
from upfeat.training.parts import Parts, build_objective, build_parts, build_upsampler
from upfeat.training.processes import derive_seed, is_main_process, pick_device
from upfeat.training.recipes import create_recipe, describe_recipe, list_recipes, register_recipe
from upfeat.training.schedule import learning_rate_factor, make_optimizer
from upfeat.training.snapshots import SnapshotFolder
from upfeat.training.source import ImageStream, open_source
from upfeat.training.statistics import RunningStatistics

__all__ = [
    "BackboneConfig",
    "Batch",
    "BatchSource",
    "CachedBackbone",
    "Callback",
    "CheckpointConfig",
    "ClipConfig",
    "CostEstimate",
    "CsvLog",
    "DataConfig",
    "DepthConfig",
    "EmaConfig",
    "ImageStream",
    "LogConfig",
    "LossGuard",
    "MaskConfig",
    "Means",
    "ObjectiveConfig",
    "OptimizerConfig",
    "Parts",
    "RunningStatistics",
    "ScheduleConfig",
    "SnapshotFolder",
    "StepReport",
    "StopConfig",
    "TensorBoardLog",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "TrainingFailedError",
    "UpsamplerConfig",
    "WeightAverage",
    "apply_overrides",
    "build_objective",
    "build_parts",
    "build_upsampler",
    "create_recipe",
    "derive_seed",
    "describe_recipe",
    "is_main_process",
    "learning_rate_factor",
    "list_recipes",
    "make_optimizer",
    "measure_cost",
    "model_card",
    "open_source",
    "pick_device",
    "read_log",
    "register_recipe",
]
