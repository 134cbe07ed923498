"""Pushing a model to the hub and loading it from there, against a stand-in on this machine."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import upfeat
from tests.hub import TOKEN, StandInHub, point_to, running_hub
from upfeat.errors import HubError, UnknownNameError, WeightsNotFoundError
from upfeat.upsamplers.cards import card_faults, split_card

WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    with running_hub() as hub:
        point_to(hub.endpoint, tmp_path, monkeypatch)
        yield hub


@pytest.fixture
def small() -> upfeat.Upsampler:
    return upfeat.create_upsampler("jafar", feature_dim=192, qk_dim=32)


def test_what_is_pushed_is_loaded_again(small: upfeat.Upsampler, hub: StandInHub) -> None:
    encoder = upfeat.create_backbone("upfeat/vit_compact_patch16", layer=3)
    address = small.push_to_hub("me/sharp", license="CC-BY-4.0", backbone=encoder, token=TOKEN)
    assert address == f"{hub.endpoint}/me/sharp/commit/{1:040x}"
    files = hub.repositories["me/sharp"]
    assert sorted(files) == [".gitattributes", "README.md", "config.json", WEIGHTS]

    loaded = upfeat.Upsampler.from_pretrained("me/sharp")
    assert loaded.config == small.config
    for key, tensor in small.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)
    assert loaded.info.weights_license == "cc-by-4.0"
    config = json.loads(files["config.json"])
    assert config["backbone"]["name"] == "upfeat/vit_compact_patch16"
    assert config["backbone"]["layer"] == 3
    assert config["backbone"]["image_mean"] == list(encoder.image_mean)

    front, text = split_card(files["README.md"].decode())
    assert front["license"] == "cc-by-4.0"
    assert front["library_name"] == "upfeat"
    assert 'from_pretrained("me/sharp")' in text


def test_a_name_alone_is_a_repository_of_the_user(small: upfeat.Upsampler, hub: StandInHub) -> None:
    small.push_to_hub("sharp", license="mit", token=TOKEN)
    assert list(hub.repositories) == ["me/sharp"]


def test_a_model_of_ours_is_updated_and_the_new_one_is_loaded(
    small: upfeat.Upsampler, hub: StandInHub
) -> None:
    small.push_to_hub("me/sharp", license="mit", token=TOKEN)
    first = hub.repositories["me/sharp"][WEIGHTS]
    upfeat.Upsampler.from_pretrained("me/sharp")
    with torch.no_grad():
        next(small.parameters()).add_(1)
    small.push_to_hub("me/sharp", license="mit", token=TOKEN)
    assert hub.repositories["me/sharp"][WEIGHTS] != first
    loaded = upfeat.Upsampler.from_pretrained("me/sharp")
    assert torch.equal(next(loaded.parameters()), next(small.parameters()))


def test_weights_without_a_licence_are_told(small: upfeat.Upsampler, hub: StandInHub) -> None:
    with pytest.warns(UserWarning, match='the card says unknown; give license="apache-2.0"'):
        small.push_to_hub("me/sharp", token=TOKEN)
    front, _ = split_card(hub.repositories["me/sharp"]["README.md"].decode())
    assert front["license"] == "unknown"


def test_published_weights_keep_their_licence(hub: StandInHub) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        upfeat.create_upsampler("jafar.vit_compact_patch16").push_to_hub("me/copy", token=TOKEN)
    front, _ = split_card(hub.repositories["me/copy"]["README.md"].decode())
    assert front["license"] == "apache-2.0"


def test_a_downloaded_copy_has_no_faults(
    small: upfeat.Upsampler, hub: StandInHub, tmp_path: Path
) -> None:
    small.push_to_hub("me/sharp", license="mit", token=TOKEN)
    for name, content in hub.repositories["me/sharp"].items():
        (tmp_path / name).write_bytes(content)
    assert card_faults(tmp_path) == []


def test_load_upsampler_reads_a_repository(small: upfeat.Upsampler, hub: StandInHub) -> None:
    small.push_to_hub("me/sharp", license="mit", token=TOKEN)
    assert upfeat.load_upsampler("me/sharp", 192).info.name == "jafar"


# -- refusals ------------------------------------------------------------------------------------


def refusal(up: upfeat.Upsampler, repository: str, token: str | None) -> str:
    with pytest.raises(HubError) as caught:
        up.push_to_hub(repository, license="mit", token=token)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_without_a_token(small: upfeat.Upsampler, hub: StandInHub) -> None:
    message = refusal(small, "me/sharp", None)
    assert message.startswith("no access token of the Hugging Face hub is here; log in with")


def test_with_a_wrong_token(small: upfeat.Upsampler, hub: StandInHub) -> None:
    assert "does not know this access token" in refusal(small, "me/sharp", "hf_wrong")
    assert hub.repositories == {}


def test_into_anothers_account(small: upfeat.Upsampler, hub: StandInHub) -> None:
    assert "may not write to you/sharp" in refusal(small, "you/sharp", TOKEN)


@pytest.mark.parametrize("config", [None, b"{}", b'{"model_type": "vit"}', b"no JSON"])
def test_over_a_repository_of_something_else(
    small: upfeat.Upsampler, hub: StandInHub, config: bytes | None
) -> None:
    files = {"pytorch_model.bin": b"theirs"} | ({} if config is None else {"config.json": config})
    hub.repositories["me/theirs"] = dict(files)
    message = refusal(small, "me/theirs", TOKEN)
    assert "me/theirs exists and holds files that upfeat did not write" in message
    assert hub.repositories["me/theirs"] == files


def test_with_a_card_that_the_hub_refuses(small: upfeat.Upsampler, hub: StandInHub) -> None:
    card = "---\nlicense: mine\n---\n# My model\n"
    with pytest.raises(HubError, match="refused the card of me/sharp: Invalid metadata") as caught:
        small.push_to_hub("me/sharp", license="mit", card=card, token=TOKEN)
    assert "\n" not in str(caught.value)
    assert WEIGHTS not in hub.repositories["me/sharp"]


def test_offline(small: upfeat.Upsampler, hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPFEAT_OFFLINE", "1")
    assert "UPFEAT_OFFLINE or HF_HUB_OFFLINE is set" in refusal(small, "me/sharp", TOKEN)
    with pytest.raises(WeightsNotFoundError, match="Hugging Face's cache has no copy"):
        upfeat.Upsampler.from_pretrained("me/sharp")
    assert hub.requests == []


def test_without_a_network(
    small: upfeat.Upsampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_to("http://127.0.0.1:9", tmp_path, monkeypatch)
    assert "the Hugging Face hub is not reachable" in refusal(small, "me/sharp", TOKEN)
    with pytest.raises(WeightsNotFoundError, match="the hub does not answer, and Hugging Face's"):
        upfeat.Upsampler.from_pretrained("me/sharp")


def test_the_cache_serves_where_the_hub_does_not(
    small: upfeat.Upsampler, hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.push_to_hub("me/sharp", license="mit", token=TOKEN)
    upfeat.Upsampler.from_pretrained("me/sharp")
    point_to("http://127.0.0.1:9", tmp_path, monkeypatch)
    assert upfeat.Upsampler.from_pretrained("me/sharp").config == small.config


def test_a_repository_that_is_not_there(hub: StandInHub) -> None:
    with pytest.raises(WeightsNotFoundError, match="the hub has none of this name") as caught:
        upfeat.Upsampler.from_pretrained("me/nothing")
    assert "\n" not in str(caught.value)


def test_a_name_that_is_none(small: upfeat.Upsampler, hub: StandInHub) -> None:
    with pytest.raises(ValueError, match="a repository is named OWNER/NAME"):
        small.push_to_hub("a/b/c", license="mit", token=TOKEN)
    with pytest.raises(UnknownNameError, match=r"unknown licence 'apache'.*apache-2\.0"):
        small.push_to_hub("me/sharp", license="apache", token=TOKEN)
    assert hub.repositories == {}
