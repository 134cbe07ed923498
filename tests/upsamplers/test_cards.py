"""Model cards: what they say, what is refused, and the cards of our own weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

import upfeat
from upfeat.cli.app import app
from upfeat.data.feature_cache import weights_fingerprint
from upfeat.evaluation.results import Result, Score
from upfeat.upsamplers.cards import (
    CardScore,
    card_faults,
    card_for,
    check_licence,
    hub_id,
    licence_id,
    split_card,
)
from upfeat.upsamplers.registry import get_checkpoint
from upfeat.upsamplers.weights import TrainedFor

TIMM = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SCORES = [
    CardScore("image-segmentation", "a probe", "msrc", "mean_iou", "mIoU", 81.1),
    CardScore("image-segmentation", "a probe", "msrc", "accuracy", "accuracy", 93.0),
]


@pytest.fixture
def small() -> upfeat.Upsampler:
    up = upfeat.create_upsampler("jafar", feature_dim=192, qk_dim=32)
    up.trained_for = TrainedFor(TIMM)
    return up


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["card", *map(str, arguments)])
    return result.exit_code, result.output


def test_front_matter_says_what_is_known(small: upfeat.Upsampler, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path, license="MIT", scores=SCORES)
    front, text = split_card((tmp_path / "README.md").read_text())
    assert front["library_name"] == "upfeat"
    assert front["license"] == "mit"
    assert front["base_model"] == TIMM
    assert front["pipeline_tag"] == "image-feature-extraction"
    assert front["tags"] == ["feature-upsampling", "jafar", "arxiv:2506.11136"]
    assert front["metrics"] == ["mean_iou", "accuracy"]
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"] == {"type": "msrc", "name": "msrc"}
    assert [metric["value"] for metric in result["metrics"]] == [81.1, 93.0]
    assert text.startswith("# jafar")
    assert card_faults(tmp_path) == []


def test_the_hubs_own_library_reads_it(small: upfeat.Upsampler, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path, license="mit", scores=SCORES)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.base_model == TIMM
    assert [result.metric_value for result in data.eval_results] == [81.1, 93.0]


def test_weights_of_ones_own_have_no_licence_until_one_is_said(small: upfeat.Upsampler) -> None:
    # NAF's authors publish theirs under Apache-2.0; these are no weights of theirs.
    up = upfeat.create_upsampler("naf", dim=32, heads_rope=2)
    assert type(up).info.weights_license == "Apache-2.0"
    assert split_card(card_for(up, None))[0]["license"] == "unknown"
    assert split_card(card_for(small, None))[0]["license"] == "unknown"


def test_a_card_with_front_matter_keeps_its_own(small: upfeat.Upsampler) -> None:
    front, text = split_card(card_for(small, None, "---\nlicense: gpl-3.0\nx: 1\n---\n\nMine\n"))
    assert (front["license"], front["x"], front["library_name"]) == ("gpl-3.0", 1, "upfeat")
    assert text == "Mine\n"


def test_a_licence_in_words_is_named(small: upfeat.Upsampler, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["weights_license"] = "Ask us first!"
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = upfeat.Upsampler.from_pretrained(tmp_path)
    front, _ = split_card(card_for(loaded, None))
    assert (front["license"], front["license_name"]) == ("other", "ask-us-first")


@pytest.mark.parametrize(
    ("text", "name"),
    [("Apache-2.0 (with words)", "apache-2.0"), ("CC-BY-4.0", "cc-by-4.0"), (None, "unknown")],
)
def test_words_about_a_licence(text: str | None, name: str) -> None:
    assert licence_id(text) == name
    assert check_licence(name.upper()) == name


@pytest.mark.parametrize("name", ["timm/resnet18", "upfeat/vit_compact_patch16", "two words.x"])
def test_no_repository_is_made_up(name: str) -> None:
    assert hub_id(name) is None


OURS = [
    name
    for name in upfeat.list_upsamplers(pretrained=True)
    if (record := get_checkpoint(name)) is not None and record.ours
]


@pytest.mark.parametrize("name", OURS)
def test_cards_of_our_weights_are_complete(
    name: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPFEAT_WEIGHTS", str(repository / "weights"))
    files = [*repository.glob(f"**/bundled/{name}.md"), *repository.glob(f"weights/{name}.md")]
    (file,) = [file for file in files if ".venv" not in file.parts]
    assert split_card(file.read_text())[0]["license"] == "apache-2.0"
    upfeat.create_upsampler(name).save_pretrained(tmp_path, card=file.read_text())
    assert card_faults(tmp_path) == []


# -- the command ---------------------------------------------------------------------------------


def test_a_complete_card(small: upfeat.Upsampler, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path, license="mit")
    assert run(tmp_path) == (0, f"{tmp_path}: card and files are complete\n")


def change(**fields: object) -> Callable[[Path], None]:
    """A change of a card's front matter; None removes a field."""

    def apply(folder: Path) -> None:
        front, text = split_card((folder / "README.md").read_text())
        front |= fields
        kept = {key: value for key, value in front.items() if value is not None}
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump(kept)}---\n\n{text}")

    return apply


INDEX = [{"name": "a", "results": [{"task": {"type": "x"}, "dataset": {"type": "x"}}]}]


@pytest.mark.parametrize(
    ("spoil", "sentences"),
    [
        (change(library_name=None), ["library_name is missing, expected upfeat"]),
        (change(license=None), ["license is missing; name one of the hub's ids"]),
        (change(license="apache"), ["'apache' is none of the hub's ids; did you mean apache-2.0?"]),
        (
            change(license="other"),
            ["license is other, which needs license_name", "license is other, and config.json"],
        ),
        (change(license=["mit"]), ["['mit'] is none of the hub's ids"]),
        (change(license="gpl"), ["license is gpl, and config.json says mit"]),
        (change(tags="upsampling"), ["tags are 'upsampling', expected a list"]),
        (change(pipeline_tag=None), ["pipeline_tag is missing; expected image-feature-extraction"]),
        (change(pipeline_tag="segmentation"), ["did you mean image-segmentation?"]),
        (change(base_model="vit tiny"), ["'vit tiny' is no id of a repository", "says " + TIMM]),
        (change(base_model=None), [f"base_model is missing, and config.json says {TIMM}"]),
        (change(metrics="mean_iou"), ["metrics are 'mean_iou', expected a list"]),
        (change(**{"model-index": "x"}), ["model-index needs a name and a list of results"]),
        (
            change(**{"model-index": INDEX}),
            ["result 1 of model-index has no dataset.name", "a metric without type or value"],
        ),
        (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors is missing"]),
        (lambda f: (f / "config.json").unlink(), ["config.json is missing"]),
        (lambda f: (f / "README.md").unlink(), ["README.md is missing"]),
        (lambda f: (f / "config.json").write_text("{"), ["config.json is no valid JSON"]),
        (lambda f: (f / "README.md").write_text("# A model"), ["README.md has no front matter"]),
        (lambda f: (f / "README.md").write_text("---\na: [\n---\n"), ["is no valid YAML"]),
        (lambda f: (f / "README.md").write_text("---\n- a\n---\n"), ["holds a list, expected"]),
        (lambda f: (f / "README.md").write_bytes(b"---\n\xff"), ["README.md: 'utf-8' codec"]),
        (
            lambda f: (f / "README.md").write_text(
                (f / "README.md").read_text() + "![loss](loss.png) [paper](https://a.org/b)\n"
            ),
            ["it names loss.png, which is not in the folder"],
        ),
    ],
)
def test_faults_are_sentences(
    small: upfeat.Upsampler,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    sentences: list[str],
) -> None:
    small.save_pretrained(tmp_path, license="mit")
    spoil(tmp_path)
    code, text = run(tmp_path)
    assert code == 1
    assert len(text.splitlines()) == len(sentences)
    for sentence in sentences:
        assert sentence in text


def test_a_card_is_written_and_its_text_kept(small: upfeat.Upsampler, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("# My words\n")
    assert run(tmp_path, "--write", "--license", "cc-by-4.0") == (0, f"{tmp_path}/README.md\n")
    front, text = split_card((tmp_path / "README.md").read_text())
    assert (front["license"], front["base_model"]) == ("cc-by-4.0", TIMM)
    assert text == "# My words\n"
    assert upfeat.Upsampler.from_pretrained(tmp_path).info.weights_license == "cc-by-4.0"
    # A further run without a licence keeps that one, and what the author added.
    change(datasets=["mine"])(tmp_path)
    assert run(tmp_path, "--write")[0] == 0
    front, _ = split_card((tmp_path / "README.md").read_text())
    assert (front["license"], front["datasets"]) == ("cc-by-4.0", ["mine"])


def test_a_missing_card_is_written(small: upfeat.Upsampler, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    (tmp_path / "README.md").unlink()
    assert run(tmp_path, "--write")[0] == 0
    assert "# jafar" in (tmp_path / "README.md").read_text()


def test_scores_come_from_results_of_the_same_weights(
    small: upfeat.Upsampler, tmp_path: Path
) -> None:
    small.save_pretrained(tmp_path / "model", license="mit")
    for number, weights in enumerate([weights_fingerprint(small.state_dict()), "another"]):
        settings = {"data": "msrc", "preset": "pixel-sample", "upsampler": {"weights": weights}}
        scores = {"miou": Score.of([80.0 + number])}
        result = Result(task="seg-probe", label="mine", settings=settings, scores=scores)
        result.save(tmp_path / "results" / f"{number}.json")
    code, text = run(tmp_path / "model", "--write", "--results", tmp_path / "results")
    assert code == 0, text
    front, _ = split_card((tmp_path / "model" / "README.md").read_text())
    (found,) = front["model-index"][0]["results"]
    assert [metric["value"] for metric in found["metrics"]] == [80.0]
    (tmp_path / "results" / "0.json").unlink()
    code, text = run(tmp_path / "model", "--write", "--results", tmp_path / "results")
    assert code == 2
    assert "holds no result of this model" in text


def test_wrong_calls(small: upfeat.Upsampler, tmp_path: Path) -> None:
    assert "no folder at" in run(tmp_path / "none")[1]
    small.save_pretrained(tmp_path)
    assert "options of --write; add it" in run(tmp_path, "--license", "mit")[1]
    code, text = run(tmp_path, "--write", "--license", "apache")
    assert (code, "did you mean 'apache-2.0'" in text) == (2, True)
