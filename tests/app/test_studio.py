"""What the page computes, without a browser."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import upfeat
from tests.tolerances import max_abs_difference
from upfeat.app import studio as module
from upfeat.app.answers import PICTURES, Answers, Choice
from upfeat.app.studio import Studio, example_photos
from upfeat.errors import UnknownNameError, UnsupportedError
from upfeat.similarity import pixel_similarity
from upfeat.viz import PCABasis

COMPACT = "upfeat/vit_compact_patch16"
CLIP = (
    "clip/ViT-B-16.openai(weights='random', vision={'layers': 2, 'width': 64}, "
    "text={'layers': 1, 'width': 32, 'heads': 2, 'context_length': 20})"
)
CAT = str(example_photos()[1])


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio([COMPACT], ["bilinear"])


def choice(photo: str | None = CAT, *methods: str, side: int = 48) -> Choice:
    return Choice(photo, COMPACT, list(methods or ("bilinear", "kin.upfeat")), side)


def test_methods_need_no_minutes_and_no_other_weights(studio: Studio) -> None:
    names = studio.methods(COMPACT)
    assert names[0] == "bilinear"  # asked for
    assert {"kin.upfeat", "jafar.vit_compact_patch16"} <= set(names)
    assert not {"upsample_anything", "featup_implicit", "nearest", "carafe"} & set(names)


def test_pictures_come_one_by_one_with_times(studio: Studio) -> None:
    counts, times = [], ""
    for pictures, times in Answers(studio).features(choice()):  # noqa: B007
        counts.append(len(pictures))
        read = {name: torch.from_numpy(np.array(Image.open(file))) for file, name in pictures}
    assert counts == [2, 3, 4]
    assert not any(Path(file).exists() for file, _ in pictures)  # the page has copies
    assert list(read) == ["photo", "low-res", "bilinear", "kin.upfeat"]
    assert "3 x 5 features of 192 channels become 48 x 72" in times
    assert times.count(" ms |") + times.count(" s |") == 3
    backbone = upfeat.create_backbone(COMPACT)
    pipe = upfeat.Pipeline(backbone, upfeat.load_upsampler("kin.upfeat", backbone), fit="resize")
    encoded = pipe.encode(module._reduced(upfeat.data.read_image(CAT), 48))
    basis = PCABasis.fit(encoded.low)
    expected = basis.colors(pipe.upsample(encoded, (48, 72), head=basis.project))
    assert (read["kin.upfeat"].permute(2, 0, 1).int() - expected.int()).abs().max() <= 1


def test_a_click_asks_every_method(studio: Studio, tmp_path: Path) -> None:
    # The picture that was clicked has another size than is chosen now.
    Image.new("RGB", (144, 96)).save(tmp_path / "seen.png")
    answers = Answers(studio)
    (*_, last) = answers.similar(choice(), (24, 100), str(tmp_path / "seen.png"))
    assert [caption.split()[0] for _, caption in last] == ["low-res", "bilinear", "kin.upfeat"]
    prepared = studio.prepare(CAT, COMPACT, 48)
    found = studio.similar(prepared, COMPACT, "kin.upfeat", (12, 50))
    pipe = prepared.pipe.with_upsampler(upfeat.load_upsampler("kin.upfeat", 192))
    expected = pixel_similarity(pipe, prepared.encoded, [(12, 50)], (48, 72))[0]
    assert max_abs_difference(found.values, expected) <= 1e-6
    with pytest.raises(ValueError, match="row 96, column 0 lies outside the photo of 96 rows"):
        next(answers.similar(choice(), (96, 0), str(tmp_path / "seen.png")))


def test_words_with_a_clip() -> None:
    pytest.importorskip("ftfy")  # comes with open_clip
    studio = Studio([COMPACT, CLIP])
    assert not studio.takes_words(COMPACT)
    assert studio.takes_words(CLIP)
    asked = Choice(CAT, CLIP, ["kin.upfeat"], 48)
    (*_, (pictures, legend)) = Answers(studio).segment(asked, "cat, <b>wall")
    assert len(pictures) == 2
    assert "&lt;b&gt;wall" in legend
    assert "<b>" not in legend
    with pytest.raises(ValueError, match="at most 12 are taken"):
        list(Answers(studio).segment(asked, ",".join("abcdefghijklm")))
    with pytest.raises(UnsupportedError, match="has no text space"):
        list(Answers(studio).segment(choice(), "cat"))


def test_files_hold_what_upsample_writes(studio: Studio) -> None:
    answers = Answers(studio)
    for what, suffix in (("features, .safetensors", ".safetensors"), ("features, .npz", ".npz")):
        for name in answers.file(choice(), what, "kin.upfeat"):
            path = Path(name)
            assert path.suffix == suffix
            if suffix == ".npz":
                assert np.load(path)["high"].shape == (192, 48, 72)
            else:
                with safe_open(path, "pt") as file:
                    assert file.get_slice("high").get_shape() == [192, 48, 72]
                    settings = json.loads(file.metadata()["settings"])
                assert settings["upsampler"] == "kin.upfeat"
        assert not path.exists()  # it is gone when the page has it
    for name in answers.file(choice(), PICTURES, "kin.upfeat"):
        assert Image.open(name).width > 3 * 72


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (choice(None), "there is no photo yet"),
        (choice(CAT, *"abcde"), "5 methods are chosen; choose one to 4"),
        (choice(CAT, "jafr"), "unknown method"),
        (choice(side=4000), "the size must be from 1 to 448 pixels"),
        (choice(CAT)._replace(backbone="timm/resnet18"), "unknown backbone of this page"),
    ],
)
def test_what_cannot_be_done_is_said(studio: Studio, asked: Choice, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(Answers(studio).features(asked))


def test_memory_is_bounded(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (6000, 5000)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match=r"^huge\.png has 5000 x 6000 pixels"):
        studio.prepare(tmp_path / "huge.png", COMPACT, 48)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^broken\.png cannot be read"):
        studio.prepare(tmp_path / "broken.png", COMPACT, 48)
    Image.new("RGB", (2000, 10)).save(tmp_path / "thin.png")
    assert studio.prepare(tmp_path / "thin.png", COMPACT, 48).size == (1, 96)
    monkeypatch.setattr(module, "LARGEST_FILE", 1000)
    with pytest.raises(ValueError, match=r"would have 1 MB, .* choose a smaller size"):
        list(Answers(studio).file(choice(), "features, .npz", "bilinear"))
    for side in range(16, 16 * 8, 16):
        studio.prepare(CAT, COMPACT, side)
    assert len(studio._prepared) == module._KEPT
    kept = studio.prepare(CAT, COMPACT, 16 * 7)
    assert studio.prepare(CAT, COMPACT, 16 * 7) is kept


def test_the_backbone_used_longest_ago_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACKBONES", 1)
    other = f"{COMPACT}(layer=-1)"
    studio = Studio([COMPACT, other])
    studio.prepare(CAT, COMPACT, 32)
    studio.prepare(CAT, other, 32)
    assert list(studio._loaded) == [other]
    assert all(COMPACT not in key for key in studio._prepared)


def test_a_studio_needs_what_it_is_told_to_offer() -> None:
    with pytest.raises(ValueError, match="no backbone to choose from"):
        Studio([])
    with pytest.raises(UnknownNameError, match="jafr"):
        Studio([COMPACT], ["jafr"])
