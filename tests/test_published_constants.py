"""The published protocols' and trainings' numbers, written out: a changed constant fails here.

Values are those of the papers and of their released code. What this package chose itself (seeds,
limits, small recipes) is not pinned.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from upfeat.data.sets.navi import EVERY, FRAME, SHORT_SIDE, TRAIN_SHARE
from upfeat.data.sets.nyuv2 import BROKEN, MARGIN, MEANS, VAL_EVERY
from upfeat.evaluation.metrics import (
    boundary_radius,
    boundary_region,
    discovery,
    propagate_labels,
    soft_argmax,
)
from upfeat.evaluation.metrics.regression import RECALLS
from upfeat.evaluation.probes import training_clicks
from upfeat.evaluation.probes.bev.frames import ROTATION, VIEW_SETTINGS, ZOOM, ViewSettings
from upfeat.evaluation.probes.bev.lifting import FREQUENCIES, MOTION, TURN, BevGrid
from upfeat.evaluation.probes.bev.targets import FACTORS, FAINT, POSITIVE_WEIGHT, SIGMA
from upfeat.evaluation.probes.losses import (
    BIN_FLOOR,
    EPSILON,
    GRADIENT_STRIDES,
    GRADIENT_WEIGHT,
    KAPPA_OFFSET,
    LEAST_ANGLE,
)
from upfeat.evaluation.probes.parts import END_FACTOR, WARM_UP_EPOCHS, WARM_UP_START
from upfeat.evaluation.probes.radseg import SCALE as ATTENTION_SCALE
from upfeat.evaluation.probes.segmentation_crops import image_probe_preset
from upfeat.evaluation.probes.surfaces import JITTER_STRENGTH, ZOOM_AREA
from upfeat.evaluation.protocols.bev import bev_preset
from upfeat.evaluation.protocols.cam import cam_preset
from upfeat.evaluation.protocols.correspondence import correspondence_preset
from upfeat.evaluation.protocols.depth_probe import depth_probe_preset
from upfeat.evaluation.protocols.discovery import discovery_preset
from upfeat.evaluation.protocols.efficiency import efficiency_preset
from upfeat.evaluation.protocols.interactive import interactive_preset
from upfeat.evaluation.protocols.normals_probe import normals_probe_preset
from upfeat.evaluation.protocols.open_vocabulary import open_vocabulary_preset
from upfeat.evaluation.protocols.restoration import restoration_preset
from upfeat.evaluation.protocols.vos import vos_preset
from upfeat.objectives import (
    CropsConfig,
    MaskRefinedConfig,
    MultiResolutionConfig,
    SelfDistillationConfig,
    restoration,
)
from upfeat.objectives.mask_refined import released_stage1_config
from upfeat.objectives.self_distillation import released_stage2_config
from upfeat.ops import images
from upfeat.similarity.maps import CLIP_SCALE, templates
from upfeat.training.recipes import (
    anyup_paper,
    jafar_paper,
    loftup_stage1_paper,
    loftup_stage2_paper,
    naf_paper,
    naf_restoration_paper,
)

ADAMW = {"optimizer.name": "adamw", "optimizer.betas": (0.9, 0.999)}
CONSTANT = {"schedule.name": "constant", "schedule.warmup_steps": 0}


def value_at(settings: Any, path: str) -> Any:
    """Return an attribute of an attribute, or an entry of a mapping, by names with dots."""
    for name in path.split("."):
        settings = settings[name] if isinstance(settings, Mapping) else getattr(settings, name)
    return settings


def pinned(settings: Any, expected: Mapping[str, Any]) -> None:
    assert {path: value_at(settings, path) for path in expected} == expected


# -- evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("loftup", {"input_size": (224, 224), "factor": None, "guidance_resize": "bilinear"}),
        ("naf", {"input_size": None, "factor": 1, "guidance_resize": "bicubic"}),
    ],
)
def test_video_object_segmentation(preset: str, expected: dict[str, Any]) -> None:
    shared = {"context_frames": 7, "top_k": 5, "radius": 12, "temperature": 0.1, "limit": None}
    shared |= {"stored_features": "float32"}
    pinned(vos_preset(preset, "davis2017"), shared | expected)


def test_label_propagation_and_boundaries() -> None:
    parameters = inspect.signature(propagate_labels).parameters
    found = {name: parameters[name].default for name in ("radius", "top_k", "temperature")}
    assert found == {"radius": 12, "top_k": 5, "temperature": 0.1}
    assert boundary_radius((480, 854)) == 8  # 0.008 of the diagonal, rounded up
    assert boundary_radius((1000, 1000)) == 12
    assert inspect.signature(boundary_region).parameters["share"].default == 0.02


def test_interactive_segmentation() -> None:
    config = interactive_preset("loftup", "grabcut")
    pinned(
        config,
        {
            "crop_size": 224,
            "feature_size": None,
            "injection": "early",
            "epochs": 20,
            "batch": 8,
            "learning_rate": 5e-5,
            "drops": (17, 20),
            "corrective": 3,
            "encoding": "disk",
            "radius": 5,
            "clicks": 20,
            "flip": True,
            "thresholds": (80, 85, 90),
            "released_batchnorm": False,
            "limit": None,
        },
    )
    rules = {"expansion": 1.4, "smallest": 200, "kept_overlap": 0.5, "threshold": 0.5}
    pinned(config.rules(), {"size": 224, "clicks": 20, "flip": True, "radius": 5} | rules)
    clicks = {"SLOTS": 24, "ERODED_CHANCE": 0.9, "EROSIONS": 3, "FEWEST": 10, "COUNT_DECAY": 0.8}
    negative = {"BACKGROUND": 0.1, "OTHERS": 0.4, "RING": 0.5, "RING_SHARE": 0.1}
    pinned(training_clicks, clicks | negative | {"CORRECTED": 0.49})
    pinned(
        training_clicks,
        {
            "SCALES": (0.75, 1.25),
            "FLIP_CHANCE": 0.5,
            "TURN_CHANCE": 0.5,
            "AFFINE_CHANCE": 0.75,
            "SHIFT": 0.03,
            "ROTATION": 3,
            "CONTRAST_CHANCE": 0.75,
            "CONTRAST": (-0.15, 0.4),
            "BRIGHTNESS": (-0.25, 0.25),
            "COLOUR_CHANCE": 0.75,
            "COLOUR": 10 / 255,
            "EMPTY_CHANCE": 0.01,
            "SMALLEST": 80,
            "MERGE_CHANCE": 0.15,
        },
    )


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("square", {"input_size": 448, "map_size": 448, "strict": False, "soft_window": None}),
        (
            "lift",
            {
                "input_size": 224,
                "map_size": None,
                "strict": True,
                "pairs_per_category": 100,
                "replacement": True,
                "pair_seed": 0,
            },
        ),
        (
            "probe3d",
            {"input_size": 800, "strict": True, "pairs_per_category": 200, "pair_seed": 20},
        ),
        ("geo-aware", {"input_size": 840, "map_size": 60, "strict": True, "soft_window": 5}),
    ],
)
def test_correspondence(preset: str, expected: dict[str, Any]) -> None:
    alphas = (0.1,) if preset == "probe3d" else (0.1, 0.05, 0.01)
    pinned(
        correspondence_preset(preset, "spair71k"),
        expected | {"alphas": alphas, "threshold": "box", "limit": None},
    )


def test_proposal_flow() -> None:
    for data, threshold in (("pf_pascal", "image"), ("pf_willow", "kp_extent")):
        settings = {"threshold": threshold, "alphas": (0.05, 0.1, 0.15)}
        pinned(correspondence_preset("square", data), settings)
    assert inspect.signature(soft_argmax).parameters["temperature"].default == 0.02


@pytest.mark.parametrize(
    ("preset", "data", "expected"),
    [
        ("tokencut", "coco20k", {"side": None, "tau": 0.2, "weighted": False}),
        ("lift", "voc2007", {"side": 224, "tau": 0.2, "factor": 2}),
        ("lift", "coco20k", {"side": 224, "tau": 0.3, "factor": 2}),
    ],
)
def test_object_discovery(preset: str, data: str, expected: dict[str, Any]) -> None:
    pinned(discovery_preset(preset, data), expected)
    assert (discovery.WEAK, discovery.HIT, discovery.MOST_CELLS) == (1e-5, 0.5, 64)


@pytest.mark.parametrize("preset", ["gaussian", "salt-pepper"])
def test_restoration(preset: str) -> None:
    expected = {"noise": preset, "deviation": 0.1, "probability": 0.05, "size": 448, "batch": 2}
    pinned(restoration_preset(preset), expected)
    assert (restoration.LOSS_WEIGHTS, len(restoration.MEAN_WINDOW)) == ((1, 5, 0.2), 3)
    window = (images.SSIM_WINDOW, images.SSIM_SIGMA, images.SSIM_STABILISERS)
    assert window == (11, 11 / 6, (1e-4, 9e-4))
    recipe = naf_restoration_paper()
    assert (recipe.steps, recipe.batch_size, recipe.data.crop) == (25_000, 4, 448)
    pinned(recipe.objective, {"deviation": (0.1, 0.1), "probability": (0.05, 0.05)})


SHARED_PROBE = {
    "optimizer": "adamw",
    "learning_rate": 5e-4,
    "weight_decay": 1e-5,
    "crop_size": 448,
    "target_size": None,
    "epochs": 20,
    "flip": 0.5,
    "guidance": "method",
    "resize_guidance": False,
    "fit": "logits_bilinear",
    "stored_features": "float32",
    "train_every": 1,
    "limit": None,
}


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("jafar", {"schedule": "per_iteration_bug", "batch": 2}),
        ("anyup", {"schedule": "per_epoch", "batch": 4}),
        ("naf", {"schedule": "per_step", "batch": 2, "guidance": "imagenet"}),
        (
            "loftup",
            {
                "schedule": "constant",
                "batch": 8,
                "optimizer": "nadam",
                "learning_rate": 1e-4,
                "weight_decay": 0.0,
                "crop_size": 224,
                "epochs": 10,
                "flip": 0.0,
                "resize_guidance": True,
                "fit": "labels_nearest",
            },
        ),
    ],
)
def test_segmentation_probes(preset: str, expected: dict[str, Any]) -> None:
    pinned(image_probe_preset(preset, "voc"), SHARED_PROBE | expected)
    coco = {} if preset == "loftup" else {"epochs": 5}
    pinned(image_probe_preset(preset, "coco_stuff27"), SHARED_PROBE | expected | coco)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        (
            "jafar",
            {
                "loss": "sig_gradient",
                "schedule": "per_iteration_bug",
                "epochs": 5,
                "batch": 4,
                "weight_decay": 1e-5,
                "flip": 0.5,
            },
        ),
        (
            "nyu",
            {
                "loss": "probe3d",
                "schedule": "probe3d",
                "epochs": 10,
                "batch": 8,
                "weight_decay": 0.01,
                "flip": 0.0,
            },
        ),
    ],
)
def test_depth_probes(preset: str, expected: dict[str, Any]) -> None:
    shared = {
        "optimizer": "adamw",
        "learning_rate": 5e-4,
        "crop_size": 448,
        "bins": 256,
        "min_depth": 1e-3,
        "max_depth": 10.0,
        "class_token": True,
        "warm_up_iterations": 100,
        "gradient": "spatial",
        "stored_features": "float32",
    }
    pinned(depth_probe_preset(preset, "nyuv2"), shared | expected)
    assert (BIN_FLOOR, EPSILON) == (0.1, 1e-3)
    assert (GRADIENT_WEIGHT, GRADIENT_STRIDES) == (0.5, (1, 2, 4, 6))


PROBE3D = {  # head, schedule and optimiser of Probe3D; LoftUp names no others
    "hidden": 512,
    "optimizer": "adamw",
    "learning_rate": 5e-4,
    "weight_decay": 0.01,
    "schedule": "probe3d",
    "epochs": 10,
    "batch": 8,
    "flip": 0.0,
    "jitter": 0.8,
    "order_seed": 8,
    "seeds": (8,),
    "picture": "nearest",
}
LOFTUP_SURFACES = {"head": "dpt7", "crop_size": 224, "score_size": 224, "zoom": 0.0}
PROBE3D_NYU = {"head": "dpt", "crop_size": 480, "score_size": 480, "zoom": 0.5}


def test_surface_probes() -> None:
    navi = {"head": "dpt", "crop_size": 512, "score_size": 512, "zoom": 0.0}
    for preset, data, own in (
        ("loftup", "navi", LOFTUP_SURFACES),
        ("probe3d", "navi", navi),
        ("probe3d", "nyuv2", PROBE3D_NYU),
    ):
        pinned(normals_probe_preset(preset, data), PROBE3D | own)
    bins = {"bins": 256, "min_depth": 1e-3}
    relative = bins | {"depth_target": "relative", "max_depth": 1.0}
    pinned(depth_probe_preset("navi", "navi"), PROBE3D | LOFTUP_SURFACES | relative)
    metric = bins | {"depth_target": "metric", "max_depth": 10.0}
    pinned(depth_probe_preset("probe3d-nyu", "nyuv2"), PROBE3D | PROBE3D_NYU | metric)
    assert depth_probe_preset("navi", "navi", depth_target="metric").max_depth == 1.0
    assert (JITTER_STRENGTH, ZOOM_AREA) == (0.2, (0.5, 1.0))
    assert (LEAST_ANGLE, KAPPA_OFFSET) == (1e-4, 1.01)
    assert list(RECALLS.values()) == [11.25, 22.5, 30.0]
    assert (WARM_UP_EPOCHS, WARM_UP_START, END_FACTOR) == (1.5, 0.01, 0.01)
    assert (SHORT_SIDE, FRAME, EVERY, TRAIN_SHARE) == (1024, 512, 4, 0.9)
    assert (BROKEN, VAL_EVERY, MARGIN) == ((21181, 6919), 20, 80)
    assert MEANS == (122.175, 116.169, 103.508)


def test_class_activation_maps() -> None:
    expected = {"images": 2000, "input_size": (224, 224), "mask": "binary", "choose": "correct"}
    pinned(cam_preset("jafar", "imagenet"), expected)


@pytest.mark.parametrize(
    ("data", "short_side", "window", "threshold"),
    [
        ("coco_stuff_171", 336, 336, 0.0),
        ("cityscapes", 448, 224, 0.0),
        ("ade20k", 448, 336, 0.0),
        ("voc", 336, 336, 0.2),
        ("voc_20", 336, 336, 0.0),
    ],
)
def test_proxyclip(data: str, short_side: int, window: int, threshold: float) -> None:
    shared = {"stride": 112, "beta": 1.2, "gamma": 3.0, "factor": 8, "logit_scale": 40.0}
    own = {"short_side": short_side, "window": window, "threshold": threshold, "templates": "clip"}
    pinned(open_vocabulary_preset("proxyclip", data), shared | own)


def test_maskclip() -> None:
    plain = {"prompt_denoising": None, "key_smoothing": None, "templates": "maskclip"}
    pinned(open_vocabulary_preset("maskclip", "voc"), plain | {"crop_size": 448, "threshold": 0.0})
    assert open_vocabulary_preset("maskclip", "voc").background == "ignore"
    assert CLIP_SCALE == 100


@pytest.mark.parametrize(
    ("data", "short_side", "stride"),
    [
        ("ade20k", 576, 224),
        ("cityscapes", 688, 224),
        ("coco_stuff_171", 448, 224),
        ("context_59", 576, 224),
        ("voc_20", 336, 112),
    ],
)
def test_radseg(data: str, short_side: int, stride: int) -> None:
    shared = {"window": 336, "prompt_denoising": 0.5, "templates": "clip", "background": None}
    config = open_vocabulary_preset("radseg", data)
    pinned(config, shared | {"short_side": short_side, "stride": stride})
    assert config.long_side == (4096 if data == "context_59" else 2048)
    assert ATTENTION_SCALE == 10


def test_talk2dino() -> None:
    shared = {"short_side": 448, "window": 448, "stride": 224, "templates": "talk2dino"}
    pinned(open_vocabulary_preset("talk2dino", "ade20k"), shared | {"background": None})
    for data in ("voc", "context_60", "coco_object"):
        background = {"background": "threshold", "threshold": 0.55}
        pinned(open_vocabulary_preset("talk2dino", data), shared | background)
    assert templates("talk2dino")[1] == "a bad photo of a {}."


@pytest.mark.parametrize("preset", ["simplebev", "pointbev", "bevformer"])
def test_vehicles_from_above(preset: str) -> None:
    """PointBeV's code, and JAFAR's paper for the frozen backbone, batch 1 and 100 epochs."""
    config = bev_preset(preset, "nuscenes")
    grid = {"grid_size": (200, 200), "heights": 8, "width": 128, "trunk": (64, 128, 256)}
    points = {"coarse_points": 2500, "fine_points": 2500, "anchors": 100, "fine_patch_size": 9}
    layers = {"bevformer_count": 6, "bevformer_feed_forward": 1028, "sparse_width": 64}
    training = {"epochs": 100, "batch": 1, "weight_decay": 1e-7, "gradient_clip": 5.0}
    cycle = {"learning_rate": 3e-4, "warm_up": 0.05, "start_division": 3, "end_division": 20}
    released = {"sampling": "released", "image_filter": "nearest", "embedding_width": 256}
    released |= {"bevformer_layers": "as_released", "bevformer_references": "as_released"}
    pinned(config, grid | points | layers | training | cycle | released)
    extent = BevGrid.around(config.grid_size, config.heights)
    assert (extent.cell, extent.corner, extent.z) == ((0.5, 0.5), (-50.0, -50.0), (-3.375, 5.375))
    assert VIEW_SETTINGS["224x480"] == ViewSettings((224, 480), (0.294, 0.308), (0.83, 0.83))
    assert (ZOOM, ROTATION, MOTION, TURN) == ((0.95, 1.05), (-2.5, 2.5), (30.0, 20.0), 20.0)
    assert (SIGMA, FAINT, POSITIVE_WEIGHT) == (3.0, 0.1, 2.13)
    assert FACTORS == {"binimg": (10, 0.5), "centerness": (0.5, 0.5), "offsets": (0.5, 0.5)}
    assert FREQUENCIES == (0, 1, 2, 4, 8, 16, 32, 64)


def test_efficiency() -> None:
    shared = {"warmup": 5, "repeats": 10, "channels": 384, "with_backbone": False}
    cells = tuple((448, 32, side) for side in (56, 112, 224, 448))
    pinned(efficiency_preset("jafar_paper"), shared | {"cells": cells})
    cells = tuple((448, 28, 28 * ratio) for ratio in (2, 4, 8, 16, 32))
    pinned(efficiency_preset("naf"), shared | {"cells": cells})
    together = {"cells": ((224, 16, 224),), "with_backbone": True, "passes": ("forward",)}
    pinned(efficiency_preset("loftup"), shared | together)


# -- objectives ----------------------------------------------------------------------------------

STAGE1 = {
    "alpha": 0.8,
    "order": "sequential",
    "distance": "mse",
    "output_scale": 1.0,
    "similarity_weight": 0.0,
}
STAGE2 = {
    "crops": 2,
    "crop_multiple": 16,
    "distance": "affinity_l2",
    "border": 0.1,
    "refine": True,
    "alpha": 0.5,
    "order": "sequential",
    "decay": 0.99,
    "every": 10,
    "output_scale": 1.0,
}


def test_loftup_stage_1() -> None:
    pinned(MaskRefinedConfig(), STAGE1 | {"projection": None, "multi_view": None})
    views = {"multi_view.views": 4, "multi_view.tv_weight": 0.01}
    pinned(released_stage1_config(), STAGE1 | {"projection": 64} | views)


def test_loftup_stage_2() -> None:
    pinned(SelfDistillationConfig(), STAGE2 | {"weight": 1.0, "tv_weight": 0.0})
    released = STAGE2 | {"weight": 20.0, "tv_weight": 0.05}
    views = {"multi_view.views": 2, "multi_view.tv_weight": 0.0}
    for patch, largest in ((14, 518), (16, 512)):
        sizes = {"input_sizes": (224, 336, 448, largest)}
        pinned(released_stage2_config(patch), released | views | sizes)


def test_jafar_and_anyup() -> None:
    shared = {"distance": "cosine_mse", "regulariser_weight": 0.1, "guidance_scale": 0.5}
    pinned(MultiResolutionConfig(), shared | {"scale": (0.25, 0.5)})
    weights = {"augmented_weight": 0.1, "downsample_weight": 0.1}
    pinned(CropsConfig(), weights | {"scale": 0.5, "crops": 4, "distance": "cosine_mse"})


# -- trainings -----------------------------------------------------------------------------------

RECIPES: dict[Callable[[], Any], dict[str, Any]] = {
    jafar_paper: {
        "objective.name": "multi_resolution",
        "objective.scale": (0.25, 0.5),
        "objective.distance": "cosine_mse",
        "objective.guidance_scale": 0.5,
        "objective.regulariser_weight": 0.1,
        "objective.clamp": "released",
        "data.crop": 448,
        "optimizer.lr": 2e-4,
        "optimizer.weight_decay": 1e-5,
        "steps": 100_000,
        "batch_size": 4,
        "precision": "bf16",
        "clip.max_norm": None,
    },
    anyup_paper: {
        "objective.name": "crops",
        "objective.scale": 0.5,
        "objective.crops": 4,
        "objective.distance": "cosine_mse",
        "objective.augmented_weight": 0.1,
        "objective.downsample_weight": 0.1,
        "objective.normalization": "guidance",
        "data.crop": 448,
        "data.min_side": 448,
        "optimizer.lr": 2e-4,
        "optimizer.weight_decay": 1e-5,
        "steps": 100_000,
        "batch_size": 4,
        "precision": "bf16",
        "clip.max_norm": None,
    },
    naf_paper: {
        "objective.name": "multi_resolution",
        "objective.scale": (0.5, 0.5),
        "objective.distance": "mse",
        "objective.guidance_cells": 4,
        "objective.guidance_max": 224,
        "objective.regulariser_weight": 0.0,
        "data.crop": 512,
        "optimizer.lr": 2e-4,
        "optimizer.weight_decay": 1e-5,
        "steps": 25_000,
        "batch_size": 4,
        "precision": "bf16",
        "clip.max_norm": None,
    },
    loftup_stage1_paper: {
        "objective.name": "mask_refined",
        "objective.alpha": 0.8,
        "objective.order": "sequential",
        "data.crop": 224,
        "data.min_side": 1500,
        "optimizer.lr": 1e-3,
        "optimizer.weight_decay": 0.01,
        "steps": 125_000,  # an epoch of a million images
        "batch_size": 8,
        "precision": "fp32",
        "clip.max_norm": 1e-4,
        "clip.first_steps": 10,
    },
    loftup_stage2_paper: {
        "objective.name": "self_distillation",
        "objective.input_sizes": (224, 336),
        "objective.crops": 2,
        "objective.crop_multiple": 16,
        "objective.distance": "affinity_l2",
        "objective.alpha": 0.5,
        "objective.decay": 0.99,
        "objective.every": 10,
        "data.crop": 896,
        "data.min_side": 1500,
        "optimizer.lr": 1e-4,
        "optimizer.weight_decay": 0.01,
        "steps": 125_000,
        "batch_size": 8,
        "precision": "fp16",
        "clip.max_norm": 1e-4,
        "clip.first_steps": 10,
    },
}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_trainings(recipe: Callable[[], Any]) -> None:
    pinned(recipe(), ADAMW | CONSTANT | RECIPES[recipe])
