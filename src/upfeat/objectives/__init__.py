"""Training signals: each turns a batch of images, a backbone and an upsampler into a loss.

One file a signal; ``base`` holds the contract and the registry, ``losses``, ``affinity`` and
``masks`` the pure functions.
"""

from upfeat.objectives.base import (
    Batch,
    Objective,
    ObjectiveConfig,
    configure_objective,
    create_objective,
    list_objectives,
    register_objective,
)
from upfeat.objectives.crops import Crops, CropsConfig
from upfeat.objectives.mask_refined import MaskRefined, MaskRefinedConfig, released_stage1_config
from upfeat.objectives.mask_transfer import MaskTransfer, MaskTransferConfig
from upfeat.objectives.multi_resolution import MultiResolution, MultiResolutionConfig, naf_config
from upfeat.objectives.multi_view import (
    MultiViewConfig,
    MultiViewReconstruction,
    MultiViewReconstructionConfig,
)
from upfeat.objectives.restoration import (
    Restoration,
    RestorationConfig,
    noisy_image,
    restoration_terms,
)
from upfeat.objectives.self_distillation import (
    SelfDistillation,
    SelfDistillationConfig,
    ema_update,
    released_stage2_config,
)
from upfeat.objectives.targets import (
    DepthTarget,
    DepthTargetConfig,
    DoubledInput,
    DoubledInputConfig,
    RepeatedDoubling,
    RepeatedDoublingConfig,
    StoredTarget,
    StoredTargetConfig,
)

__all__ = [
    "Batch",
    "Crops",
    "CropsConfig",
    "DepthTarget",
    "DepthTargetConfig",
    "DoubledInput",
    "DoubledInputConfig",
    "MaskRefined",
    "MaskRefinedConfig",
    "MaskTransfer",
    "MaskTransferConfig",
    "MultiResolution",
    "MultiResolutionConfig",
    "MultiViewConfig",
    "MultiViewReconstruction",
    "MultiViewReconstructionConfig",
    "Objective",
    "ObjectiveConfig",
    "RepeatedDoubling",
    "RepeatedDoublingConfig",
    "Restoration",
    "RestorationConfig",
    "SelfDistillation",
    "SelfDistillationConfig",
    "StoredTarget",
    "StoredTargetConfig",
    "configure_objective",
    "create_objective",
    "ema_update",
    "list_objectives",
    "naf_config",
    "noisy_image",
    "register_objective",
    "released_stage1_config",
    "released_stage2_config",
    "restoration_terms",
]
