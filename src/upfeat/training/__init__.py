"""Training of upsamplers: settings, recipes, the loop, what it writes."""

from upfeat.training.config import (
    BackboneConfig,
    CheckpointConfig,
    ClipConfig,
    DataConfig,
    DepthConfig,
    EmaConfig,
    FeatureMapConfig,
    LogConfig,
    MaskConfig,
    OptimizerConfig,
    ScheduleConfig,
    StopConfig,
    TrainConfig,
    UpsamplerConfig,
    ValidationConfig,
    apply_overrides,
)
from upfeat.training.cost import CostEstimate, measure_cost
from upfeat.training.engine import Callback, StepReport, Trainer, TrainResult
from upfeat.training.export import model_card
from upfeat.training.guard import LossGuard, TrainingFailedError
from upfeat.training.logs import CsvLog, Means, TensorBoardLog, read_log
from upfeat.training.optimization import (
    RunningStatistics,
    WeightAverage,
    learning_rate_factor,
    make_optimizer,
)
from upfeat.training.parts import CachedBackbone, Parts, build_parts, build_upsampler
from upfeat.training.processes import derive_seed, is_main_process, pick_device
from upfeat.training.recipes import (
    create_recipe,
    describe_recipe,
    list_recipes,
    register_recipe,
    when_to_take,
)
from upfeat.training.run_folder import SnapshotFolder
from upfeat.training.source import BatchSource, ImageStream, open_source, open_validation
from upfeat.training.validation import validation_loss

__all__ = [
    "BackboneConfig",
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
    "FeatureMapConfig",
    "ImageStream",
    "LogConfig",
    "LossGuard",
    "MaskConfig",
    "Means",
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
    "ValidationConfig",
    "WeightAverage",
    "apply_overrides",
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
    "open_validation",
    "pick_device",
    "read_log",
    "register_recipe",
    "validation_loss",
    "when_to_take",
]
