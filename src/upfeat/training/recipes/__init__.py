"""Complete configurations: the papers' own, and small ones that finish on two cores.

Each function says which of its fields are from the paper, from the released code
or chosen here.
"""

from upfeat.training.recipes.ablations import (
    featup_jbu_imagenet_50k,
    featup_jbu_loftup_objective,
    featup_jbu_loftup_objective_small,
    featup_jbu_loftup_objective_stage2,
    jafar_distilled,
    jafar_distilled_small,
    liif_loftup_objective,
    liif_loftup_objective_small,
    liif_loftup_objective_stage2,
    loftup_depth_paper,
    loftup_depth_small,
    loftup_doubled_paper,
    loftup_doubled_small,
    loftup_implicit_paper,
    loftup_implicit_small,
    resize_conv_loftup_objective,
    resize_conv_loftup_objective_small,
    resize_conv_loftup_objective_stage2,
)
from upfeat.training.recipes.anyup import anyup_paper, anyup_small
from upfeat.training.recipes.bundled import (
    bundled_jafar,
    bundled_jafar_pixels,
    bundled_loftup_stage1,
    bundled_loftup_stage1_longer,
    bundled_loftup_stage2,
    bundled_universal,
    bundled_universal_stage3,
)
from upfeat.training.recipes.doubling import (
    ifa_small,
    lift_paper,
    lift_small,
    uplift_paper,
    uplift_small,
)
from upfeat.training.recipes.featup import featup_jbu_paper, featup_jbu_small
from upfeat.training.recipes.jafar import jafar_maskclip_paper, jafar_paper, jafar_small
from upfeat.training.recipes.loftup import (
    loftup_stage1_paper,
    loftup_stage1_small,
    loftup_stage2_paper,
    loftup_stage2_small,
)
from upfeat.training.recipes.naf import (
    joint_bilateral_learned_small,
    naf_paper,
    naf_restoration_paper,
    naf_restoration_small,
    naf_small,
)
from upfeat.training.recipes.raysup import raysup_paper, raysup_small
from upfeat.training.recipes.registry import (
    create_recipe,
    describe_recipe,
    list_recipes,
    register_recipe,
    when_to_take,
)
from upfeat.training.recipes.task_dependent import (
    carafe_small,
    dysample_small,
    liif_small,
    resfu_small,
    resize_conv_small,
    sapa_small,
)

__all__ = [
    "anyup_paper",
    "anyup_small",
    "bundled_jafar",
    "bundled_jafar_pixels",
    "bundled_loftup_stage1",
    "bundled_loftup_stage1_longer",
    "bundled_loftup_stage2",
    "bundled_universal",
    "bundled_universal_stage3",
    "carafe_small",
    "create_recipe",
    "describe_recipe",
    "dysample_small",
    "featup_jbu_imagenet_50k",
    "featup_jbu_loftup_objective",
    "featup_jbu_loftup_objective_small",
    "featup_jbu_loftup_objective_stage2",
    "featup_jbu_paper",
    "featup_jbu_small",
    "ifa_small",
    "jafar_distilled",
    "jafar_distilled_small",
    "jafar_maskclip_paper",
    "jafar_paper",
    "jafar_small",
    "joint_bilateral_learned_small",
    "lift_paper",
    "lift_small",
    "liif_loftup_objective",
    "liif_loftup_objective_small",
    "liif_loftup_objective_stage2",
    "liif_small",
    "list_recipes",
    "loftup_depth_paper",
    "loftup_depth_small",
    "loftup_doubled_paper",
    "loftup_doubled_small",
    "loftup_implicit_paper",
    "loftup_implicit_small",
    "loftup_stage1_paper",
    "loftup_stage1_small",
    "loftup_stage2_paper",
    "loftup_stage2_small",
    "naf_paper",
    "naf_restoration_paper",
    "naf_restoration_small",
    "naf_small",
    "raysup_paper",
    "raysup_small",
    "register_recipe",
    "resfu_small",
    "resize_conv_loftup_objective",
    "resize_conv_loftup_objective_small",
    "resize_conv_loftup_objective_stage2",
    "resize_conv_small",
    "sapa_small",
    "uplift_paper",
    "uplift_small",
    "when_to_take",
]
