"""The methods of a table, with their weights: published, kept from a probe, or trained here."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upfeat.evaluation.papers.records import PublishedRow
from upfeat.evaluation.papers.sources import PaperMethod, Roots, paper_method

if TYPE_CHECKING:
    from upfeat.backbones import Backbone
    from upfeat.evaluation.methods import Method
    from upfeat.evaluation.registry import Protocol
    from upfeat.training import TrainConfig
    from upfeat.upsamplers import Upsampler

__all__ = ["RowMethods", "at_hand", "backbone_file", "published_name"]

logger = logging.getLogger(__name__)

# A few steps on small crops, so that every recipe runs through; changes of a recipe by its name.
_SMALL = ("steps=2", "batch_size=2", "checkpoint.every=2", "schedule.warmup_steps=0", "device=cpu")
_SMALL_DATA = ("data.crop=96", "data.resize=112")
_SMALL_CROPS = ("data.crop=128", "data.resize=144")


def _small_data(recipe: str) -> tuple[str, ...]:
    """Return the small crops of a recipe."""
    if "distilled" in recipe or "stage2" in recipe:
        return (*_SMALL_CROPS, "objective.input_sizes=[64]")
    if "doubled" in recipe:
        return _SMALL_CROPS
    if recipe == "naf_small":  # whose windows need crops of its own size
        return ()
    return (*_SMALL_DATA, "data.limit=4") if "implicit" in recipe else _SMALL_DATA


def published_name(arch: str, backbone: str) -> str | None:
    """Return the name of published weights of a method for a backbone; None if there are none.

    Those of the method's own paper come before others' of the same network.

    Example:
        >>> from upfeat.cli.reproduce.methods import published_name
        >>> published_name("jafar", "timm/vit_small_patch14_dinov2.lvd142m")
        'jafar.dinov2_vits14'
    """
    from upfeat.upsamplers import list_upsamplers
    from upfeat.upsamplers.registry import get_checkpoint, get_class

    others = []
    for name in list_upsamplers(f"{arch}.*", pretrained=True):
        record = get_checkpoint(name)
        if record is None or name.endswith("_stage1"):
            continue
        if record.feature_dim is None or record.backbone == backbone:
            if record.paper == get_class(arch).info.arxiv:
                return name
            others.append(name)
    return next(iter(others), None)


def at_hand(name: str) -> bool:
    """Whether published weights are in the package or in a folder here; downloads nothing."""
    from upfeat.checkpoints import find_weights
    from upfeat.errors import WeightsNotFoundError
    from upfeat.upsamplers.registry import get_checkpoint

    record = get_checkpoint(name)
    if record is None or record.bundled:
        return record is not None
    try:
        find_weights(name, record.local_names(name.partition(".")[0]))
    except WeightsNotFoundError:
        return False
    return True


def backbone_file(name: str, roots: Roots) -> Path | None:
    """Return the file of a backbone's weights in the folder ``weights`` of the roots, if any."""
    folder = roots.find("weights")
    stem = name.partition("/")[2].partition("(")[0]
    if folder is None or not name.startswith("timm/"):
        return None
    stems = (stem, stem.replace(".", "_224.", 1))
    return next((f for f in sorted(folder.iterdir()) if f.name.startswith(stems)), None)


class RowMethods:
    """Builds the methods of rows for one backbone; trainings are kept in a folder and resumed.

    Args:
        backbone: network, or its width.
        name: of the backbone, empty for a width.
        roots: folders of the training images.
        folder: of trainings.
        small: a few steps of small recipes instead of the papers'.
        device: where everything runs.
        teacher: folder of a depth teacher, for trainings on depth maps.
    """

    def __init__(
        self,
        backbone: "Backbone | int",
        name: str,
        roots: Roots,
        folder: Path,
        *,
        small: bool,
        device: str,
        teacher: Path | None = None,
    ) -> None:
        self.backbone, self.name, self.roots = backbone, name, roots
        self.teacher = teacher
        self.folder, self.small, self.device = folder, small, device
        self.trained: dict[str, tuple[str, ...]] = {}

    def load(self, row: PublishedRow, protocol: "Protocol") -> "Method":
        """Return the method of a row, labelled by the row's key.

        Raises:
            ValueError: there are neither weights nor what a training needs; says what to give.
        """
        from upfeat.evaluation.methods import Method, load_methods

        method = paper_method(row.uses)
        spec = method.used_spec(small=self.small)
        own = bool(row.training or row.recipes)
        plain = not method.recipes and not method.small_recipes  # without weights of its own
        if plain or (protocol.weights == "untrained" and not own):
            return self._named(row.key, spec, protocol.weights)
        if method.joint and protocol.weights == "joint" and not own:
            return self._named(row.key, spec, "joint")
        name = None if own else published_name(method.arch, self.name)
        # A small run downloads nothing: what is missing is trained for a few steps.
        if name is not None and (at_hand(name) or not self.small):
            options = spec[len(method.arch) :]
            (found,) = load_methods(f"{row.key}={name}{options}", self.backbone, device=self.device)
            return found
        if method.joint and not self._recipes(row, method):
            return Method(row.key, self._load_model(self._from_probe(row.key, spec), spec))
        model = self._train(row, method)
        self.trained[row.key] = self._recipes(row, method)
        return Method(row.key, self._load_model(model, spec))

    def _named(self, key: str, spec: str, weights: Any) -> "Method":
        from upfeat.evaluation.methods import load_methods

        (found,) = load_methods(f"{key}={spec}", self.backbone, weights=weights, device=self.device)
        return found

    def _load_model(self, folder: Path, spec: str) -> "Upsampler":
        """Load a trained model; arguments of the row that do not change the weights are applied."""
        from upfeat._settings import read_call
        from upfeat.upsamplers import Upsampler

        model = Upsampler.from_pretrained(folder)
        _, options = read_call(spec, "an upsampler")
        if options:
            changed = type(model)(**(model.config | options))
            changed.load_state_dict(model.state_dict())
            model = changed
        return model.to(self.device).eval()

    # -- training --------------------------------------------------------------------------------

    def _from_probe(self, key: str, spec: str) -> Path:
        """Train a method with a segmentation probe on VOC, as table 1 does; return its folder."""
        from upfeat.evaluation.methods import load_methods
        from upfeat.evaluation.probes.crops import kept_weights
        from upfeat.evaluation.registry import Request, get_protocol
        from upfeat.evaluation.results import result_file_name

        root = self.roots.find("voc")
        if root is None:
            raise ValueError(f"{spec} is trained with a probe on {self.roots.missing('voc')}")
        protocol, out, seeds = get_protocol("seg-probe"), self.folder / "probes", (0,)
        config = protocol.settings("jafar", "voc", seeds=seeds)
        options = {option.name: option.default for option in protocol.options}
        request = Request(
            "voc", root, self.folder / "cache", self.device, options | {"keep_weights": True}
        )
        methods = load_methods(f"{key}={spec}", self.backbone, weights="joint", device=self.device)
        (result,) = protocol.run(
            config=config,
            backbone=self.backbone,
            methods=methods,
            out=out,
            on_progress=None,
            **protocol.inputs(request),
        )
        path = out / result_file_name(result.task, "voc", result.label, result.settings)
        return kept_weights(path, seeds)[0]

    def _recipes(self, row: PublishedRow, method: PaperMethod) -> tuple[str, ...]:
        if self.small:
            return row.small_recipes or method.small_recipes
        return row.recipes or method.recipes

    def _train(self, row: PublishedRow, method: PaperMethod) -> Path:
        """Train the recipes of a row, each from the one before; return the last model's folder."""
        from upfeat.training import Trainer, create_recipe

        recipes = self._recipes(row, method)
        if not recipes:
            raise ValueError(
                f"{method.arch} has neither published weights for {self.name} nor a recipe of the "
                "paper's size"
            )
        model: Path | None = None
        for recipe in recipes:
            changes = self._changes(recipe, row.training if model is None else ())
            config = self._with_data(create_recipe(recipe, changes), method)
            if model is not None:
                start = config.upsampler.model_copy(update={"start_from": str(model)})
                config = config.model_copy(update={"upsampler": start})
            digest = hashlib.blake2b(config.to_json().encode(), digest_size=4).hexdigest()
            out = self.folder / f"{recipe}-{digest}"
            model = out / "model"
            if not model.is_dir():
                self._keep_maps(config)
                logger.info("training %s for row %s in %s", recipe, row.key, out)
                Trainer(config, out).fit(resume=True)
        assert model is not None
        return model

    def _with_data(self, config: "TrainConfig", method: PaperMethod) -> "TrainConfig":
        """Put the folders of images, depth and stored maps into a recipe."""
        data = config.data
        update: dict[str, Any] = {}
        wanted = "sa1b" if any(mask.kind == "sa1b" for mask in data.masks) else method.images
        if self.small:
            wanted = "imagenet"
        if data.depth is not None and data.depth.teacher is not None:
            if self.teacher is None:
                raise ValueError("depth maps of training images need --teacher FOLDER")
            given = {"teacher": str(self.teacher), "cache": str(self.folder / "depth-maps")}
            update["depth"] = data.depth.model_copy(update=given)
        elif data.depth is not None:  # maps of a sensor, which NYUv2 has
            wanted = "nyuv2/train"
            maps = self._folder("nyuv2", method) / "train" / "depth"
            update["depth"] = data.depth.model_copy(update={"root": str(maps)})
        if data.features is not None:
            maps = self.folder / f"maps-{self.name.replace('/', '-')}-{data.crop_size[0]}"
            update["features"] = data.features.model_copy(update={"root": str(maps)})
        name, _, part = wanted.partition("/")
        images = self._folder(name, method) / part
        inner = images / "images"
        update["paths"] = (str(inner if inner.is_dir() else images),)
        # All images are trained on, as in the papers.
        return config.model_copy(
            update={"data": data.model_copy(update=update), "validation": None}
        )

    def _folder(self, name: str, method: PaperMethod) -> Path:
        found = self.roots.find(name)
        if found is None:
            raise ValueError(f"{method.arch} must be trained on {self.roots.missing(name)}")
        return found

    def _keep_maps(self, config: "TrainConfig") -> None:
        """Fit an implicit network to each training image and keep its map, where one is asked for.

        It is what ``upfeat upsample --upsampler featup_implicit --save safetensors`` does.
        """
        import upfeat
        from upfeat.checkpoints import write_safetensors
        from upfeat.data import find_images
        from upfeat.data.feature_cache import MAP_KEY
        from upfeat.data.records import random_subset

        data = config.data
        if data.features is None or isinstance(self.backbone, int):
            return
        spec = paper_method("featup-implicit").used_spec(small=self.small)
        upsampler = upfeat.load_upsampler(spec, self.backbone).to(self.device)
        side = min(data.crop_size)
        pipe = upfeat.Pipeline(
            self.backbone, upsampler, input_size=side, output_size=side, fit="resize"
        )
        records = find_images(data.paths[0])
        chosen = random_subset(records, data.limit or len(records), config.seed)
        for record in (chosen[number] for number in range(len(chosen))):
            path = Path(data.features.root) / f"{record.name}.safetensors"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                found = pipe.upsample(pipe.encode(record.read_image()))
                write_safetensors(path, {MAP_KEY: found.half().cpu()})

    def _changes(self, recipe: str, own: Sequence[str]) -> list[str]:
        """Return what changes of a recipe for this backbone, this row and a small run."""
        # Where a width is enough the recipe names the backbone itself.
        changes = [f"backbones.0.name={self.name}"] if self.name else []
        file = backbone_file(self.name, self.roots)
        if file is not None:
            changes.append(f"backbones.0.weights={file}")
        changes += own
        if self.small:
            changes += [*_SMALL, *_small_data(recipe)]
        return changes
