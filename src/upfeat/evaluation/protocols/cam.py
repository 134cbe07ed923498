"""How faithful upsampled class activation maps are to their classifier.

Preset ``jafar``: Grad-CAM at the input of a transformer's last block, for images that the
classifier gets right. The activations ``A`` are upsampled to the image's size, the weights ``w``
(gradients of the class's logit, averaged over positions) stay those of the low-resolution map, and
the map is ``relu(sum_k w_k A_k)``. Where ``info.abilities.linear`` allows, the single channel
``sum_k w_k A_k`` is upsampled with the weights that ``A`` decides: the same map for less.

The image is masked by the map, as a normalised tensor: what is masked becomes the mean colour. Its
own map for the same class comes out of the whole procedure, guided by the masked image.

Legend: ``B`` images, ``C`` channels of the layer, ``h w`` its grid, ``H W`` the classifier's input.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from upfeat._files import write_bytes
from upfeat.backbones import Backbone
from upfeat.data import ClassifiedFile, ClassifiedImages, coco_objects, imagenet
from upfeat.data.sizes import Frame, Size, resize, resolve_size
from upfeat.evaluation.methods import Method
from upfeat.evaluation.metrics import CamMetric, normalize_map
from upfeat.evaluation.probes.cam_classifier import CamClassifier, Explanation, create_classifier
from upfeat.evaluation.registry import (
    Presets,
    Progress,
    Protocol,
    ProtocolConfig,
    higher,
    lower,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result
from upfeat.evaluation.running import Measured, Pending, ProtocolRun, seed_scores
from upfeat.evaluation.tables.panels import shown_images
from upfeat.ops.images import normalize
from upfeat.pipeline import Encoded, Pipeline

__all__ = ["DATA_SETS", "PRESETS", "CamConfig", "cam_preset", "run_cam"]

TASK = "cam"


class CamConfig(ProtocolConfig):
    """Settings of the protocol; all of them stand in the result.

    Attributes:
        images: how many are drawn; all that there are, if there are fewer.
        choose: only images that the classifier gets right, or all; the class is always the one
            that the classifier predicts.
        seed: of the order in which images are tried.
        input_size: (H, W) of the classifier's input, and of the maps.
        crop_fraction: of the resized short side that the crop keeps; None for the classifier's own.
        layer: path of the module in the network, such as ``blocks.-1``; None for the input of a
            transformer's last block, or the output of the last stage of another network.
        side: of that module; None for its output, or without ``layer`` the one named there.
        mask: ``binary`` keeps the pixels where the map is above 0; ``soft`` multiplies by the map.
    """

    preset: Literal["jafar"] = "jafar"
    images: PositiveInt = 2000
    choose: Literal["correct", "all"] = "correct"
    seed: int = 0
    input_size: tuple[PositiveInt, PositiveInt] = (224, 224)
    crop_fraction: PositiveFloat | None = None
    layer: str | None = None
    side: Literal["input", "output"] | None = None
    mask: Literal["binary", "soft"] = "binary"


DATA_SETS: dict[str, Callable[..., ClassifiedImages]] = {
    "imagenet": imagenet,
    "coco_objects": coco_objects,
}
PRESETS: dict[str, dict[str, Any]] = {"jafar": {}}
# The classes of the COCO objects are not a classifier's.
cam_preset = Presets(CamConfig, PRESETS, DATA_SETS, {"coco_objects": {"choose": "all"}})


def run_cam(
    config: CamConfig,
    data: ClassifiedImages,
    backbone: Backbone,
    methods: Sequence[Method],
    *,
    out: str | Path,
    cache: str | Path,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Score the maps of several upsamplers in one pass, see :attr:`Protocol.run`.

    The backbone is a network of timm with its classifier
    (:func:`~upfeat.evaluation.probes.cam_classifier.create_classifier`). Pictures of three images
    go to ``out/panels`` for ``upfeat report``; the cache keeps the choice of images and the scores
    so far, from which an interrupted run goes on. Scores are in percent: ``complexity`` and
    ``adcc`` are those of the paper (share of non-zero pixels), ``_l1`` those of the reference code;
    ``adcc`` is of the means, ``adcc_per_image`` the mean over the images.

    Raises:
        ValueError: the data is broken, no image is classified right, there is no such layer, or a
            method does not fit it.
    """
    classifier = CamClassifier(backbone, config.layer, config.side)
    folder = Path(cache) / "cam"
    return _Scoring(config, Path(out), on_progress or silent, data, classifier, folder).run(methods)


@dataclass(eq=False)
class _Scoring(ProtocolRun):
    """One classifier on one set; the methods go together."""

    task = TASK

    config: CamConfig
    data: ClassifiedImages
    classifier: CamClassifier
    folder: Path

    def __post_init__(self) -> None:
        config, data, classifier = self.config, self.data, self.classifier
        self.size: Size = config.input_size
        self.device = next(classifier.model.parameters()).device
        self.crop_fraction = config.crop_fraction or classifier.crop_fraction
        self.identity = Pipeline(classifier.backbone).identity
        if config.choose == "correct" and len(data.classes) != classifier.num_classes:
            raise ValueError(
                f"{data.name} has {len(data.classes)} classes, {classifier.backbone.name} "
                f"{classifier.num_classes}; set choose=all to take every image, each for the class "
                "that the classifier predicts"
            )
        self.files, self.tried = self.choose()
        digest = hashlib.blake2b(digest_size=8)
        for file in self.files:
            digest.update(f"{file.name} {data.file_hash(file)}\n".encode())
        split = {"images": len(self.files), "fingerprint": digest.hexdigest()}
        self.facts = {
            "classifier": classifier.backbone.name,
            "crop_fraction": round(self.crop_fraction, 6),
            "layer": classifier.layer,
            "side": classifier.side,
            "map_size": list(self.size),
            "splits": {data.name: split},
            "backbone": self.identity,
            "image_resize": "short side bicubic, antialiased; centre crop",
            "class_score": "logit",
        }
        self.pipe = Pipeline(classifier.as_backbone(self.size), device=self.device)

    # -- choice ----------------------------------------------------------------------------------

    def choose(self) -> tuple[tuple[ClassifiedFile, ...], int]:
        """Return the images, in the seed's random order, and how many were tried; kept on disk."""
        config, files = self.config, self.data.files
        key = {
            "classifier": self.identity,
            "files": [[file.name, file.label, file.image.stat().st_size] for file in files],
            "crop_fraction": self.crop_fraction,
            "settings": config.model_dump(
                mode="json", include={"images", "choose", "seed", "input_size", "limit"}
            ),
        }
        digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).hexdigest()
        path = self.folder / f"choice-{digest}.json"
        if path.is_file():
            content = json.loads(path.read_text())
            return tuple(files[index] for index in content["files"]), content["tried"]
        count = min(config.images, config.limit or config.images)
        generator = torch.Generator().manual_seed(config.seed)
        order = torch.randperm(len(files), generator=generator).tolist()
        chosen: list[int] = []
        tried = 0
        for index in order:
            if len(chosen) == count:
                break
            self.on_progress("classifier", "choosing images", len(chosen), count)
            tried += 1
            if config.choose == "all" or self.is_right(files[index]):
                chosen.append(index)
        if not chosen:
            raise ValueError(
                f"{self.classifier.backbone.name} gets none of {tried} images of {self.data.name} "
                "right; check its weights and the numbers of the classes"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps({"files": chosen, "tried": tried}).encode())
        return tuple(files[index] for index in chosen), tried

    def is_right(self, file: ClassifiedFile) -> bool:
        """Return whether the classifier predicts the image's class."""
        pixels = self.normalized(self.prepare(file))
        return int(self.classifier.logits(pixels).argmax()) == file.label

    def prepare(self, file: ClassifiedFile) -> Tensor:
        """Return an image as the classifier sees it, (1, 3, H, W) in [0, 1]."""
        image = self.data.read(file).image[None]
        short = int(min(self.size) / self.crop_fraction)
        own: Size = (image.shape[2], image.shape[3])
        height, width = resolve_size(short, own)
        # A crop with another aspect ratio than the image's may be larger than the short side.
        image = resize(image, (max(height, self.size[0]), max(width, self.size[1])))
        top, left = ((image.shape[2 + i] - self.size[i]) // 2 for i in (0, 1))
        crop = image[:, :, top : top + self.size[0], left : left + self.size[1]]
        return crop.to(self.device)

    def normalized(self, image: Tensor) -> Tensor:
        backbone = self.classifier.backbone
        return normalize(image, backbone.image_mean, backbone.image_std)

    # -- maps and scores -------------------------------------------------------------------------

    def measure_all(self, pending: Sequence[Pending]) -> Iterator[Measured]:
        """Score every image for every method that lacks it, in one pass."""
        start, count = time.perf_counter(), len(self.files)
        label = ", ".join(each.method.label for each in pending)
        with ExitStack() as kept:
            all_rows = [kept.enter_context(each.unfinished(self.folder)) for each in pending]
            for number, file in enumerate(self.files):
                missing = [
                    (each.method, unfinished)
                    for each, unfinished in zip(pending, all_rows, strict=True)
                    if file.name not in unfinished.rows
                ]
                if not missing:
                    continue
                self.on_progress(label, "maps and scores", number, count)
                image = self.prepare(file)
                explanation = self.classifier.explain(self.normalized(image))
                for method, unfinished in missing:
                    scores, ready = self.score(method, image, explanation)
                    unfinished.put(file.name, scores)
                    if number in shown_images(count):
                        backbone = self.classifier.backbone.name
                        self.draw(image[0], file.name, backbone, [(method.label, "cam", ready[0])])
        seconds = time.perf_counter() - start
        for each, unfinished in zip(pending, all_rows, strict=True):
            each.seconds["all methods of the run"] = seconds
            yield self.summarise(each.method, unfinished.rows)

    def score(
        self, method: Method, image: Tensor, explanation: Explanation
    ) -> tuple[list[float], Tensor]:
        """Return the scores of one image (1, 3, H, W), and its map (1, H, W) from 0 to 1.

        The scores are in the order of ``CamMetric.NAMES``.
        """
        raw = self.map(method, image, explanation)
        ready = normalize_map(raw)
        mask = (raw > 0).to(image.dtype) if self.config.mask == "binary" else ready
        mask = mask[:, None]  # (1, H, W) -> (1, 1, H, W)
        # Zero in the normalised image is the mean colour here.
        mean = image.new_tensor(self.classifier.backbone.image_mean)[:, None, None]
        masked_image = image * mask + mean * (1 - mask)
        again = self.classifier.explain(self.normalized(image) * mask, explanation.target)
        masked_map = normalize_map(self.map(method, masked_image, again))
        scores = CamMetric.score(explanation.probability, again.probability, ready, masked_map)
        return scores[0].tolist(), ready

    def map(self, method: Method, image: Tensor, explanation: Explanation) -> Tensor:
        """Return the map (1, H, W), not negative and not normalised."""
        weights = explanation.weights
        frame = Frame(self.size, self.size, self.size)
        encoded = Encoded(image, image, explanation.activations, frame)

        def head(maps: Tensor) -> Tensor:
            return torch.einsum("bchw,bc->bhw", maps, weights)[:, None]  # (1, 1, h, w)

        return method.on(self.pipe).upsample(encoded, self.size, head)[0].relu()[None]

    def summarise(self, method: Method, rows: dict[str, Any]) -> Measured:
        metric, names = CamMetric(), [file.name for file in self.files]
        metric.add_scores(torch.tensor([rows[name] for name in names], dtype=torch.float64))
        scores = {name.replace("_l0", ""): score for name, score in metric.compute().items()}
        return seed_scores([scores]), {
            "images": names,
            "images_tried": self.tried,
            "head_before_upsampling": method.upsampler.info.abilities.linear,
        }


register_protocol(
    Protocol(
        name=TASK,
        title="Class activation maps",
        summary="Upsample Grad-CAM in feature space, and score how faithful the maps are.",
        scores={
            "average_drop": lower("average drop"),
            "average_increase": higher("average increase"),
            "average_gain": higher("average gain"),
            "coherency": higher("coherency"),
            "complexity": lower("complexity"),
            "adcc": higher("ADCC"),
            "complexity_l1": lower("complexity (L1)"),
            "adcc_l1": higher("ADCC (L1)"),
            "adcc_per_image": higher("ADCC (per image)"),
            "adcc_l1_per_image": higher("ADCC (L1) (per image)"),
        },
        headline=("adcc",),
        columns=(
            *("average_drop", "average_increase", "average_gain", "coherency", "complexity"),
            *("adcc", "complexity_l1", "adcc_l1"),
        ),
        caption="mean over the images",
        configure=cam_preset,
        presets=tuple(PRESETS),
        data=tuple(DATA_SETS),
        inputs=lambda request: {
            "data": DATA_SETS[str(request.data)](request.root),
            "cache": request.cache,
        },
        backbone=create_classifier,
        run=run_cam,
        items="images",
    )
)
