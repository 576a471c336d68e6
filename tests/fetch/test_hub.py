"""A release on a hub: found by huggingface_hub at one commit, checked as any other; hostile answers refused."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from hubs import COMMIT, REPO, Hub, hub_of
from pulls import assert_same, entries, spoil
from releases import before_numbers, encoder, served

import sscxr
from sscxr.errors import SscxrError
from sscxr.release import download, fetch, release, signing

AT = f"hf://{REPO}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a signed release of some 200 kB; its key is in `old`, and pulls go into `cache`."""
    before_numbers(tmp_path / "old")
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    monkeypatch.setenv("SSCXR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with hub_of(tmp_path / "old" / "release") as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        form = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", form)
        yield hub


def refused(says: str, source: str = AT) -> None:
    with pytest.raises(SscxrError, match=says) as error:
        fetch.pull(source)
    assert "\n" not in str(error.value)
    assert not entries(fetch.cache_folder())


def test_a_release_is_pulled_at_one_commit(hub: Hub) -> None:
    key = signing.read_public(hub.folder.parent / "release.pub")
    folder = fetch.pull(f"{AT}@v1", key=key)
    assert_same(folder, hub.folder)
    assert hub.asked[0] == ("HEAD", "v1", signing.SUMS, "")
    assert {(method, revision) for method, revision, *_ in hub.asked[1:]} == {("GET", COMMIT)}
    for source in (AT, f"{AT}/", f"{AT}@{COMMIT}"):
        assert fetch.pull(source) == folder
    assert [one for one in hub.asked if one[2] == release.WEIGHTS] == [("GET", COMMIT, release.WEIGHTS, "")]
    assert sscxr.load_encoder(AT, key=hub.folder.parent / "release.pub").num_features == 64


def test_the_token_goes_to_the_hub_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_secret"
    refused(r"has no such repository, or not for this account; log in by `hf auth login`, or set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(download, "_is_internal", lambda url: False)  # all servers here are
    sent: list[dict[str, str]] = []
    with served(hub.folder) as store:
        opened = download.requests.Session.get

        def get(session: object, url: str, **options: object) -> object:
            if url.startswith(store.url):
                sent.append(dict(options["headers"]))  # type: ignore[call-overload]
            return opened(session, url.partition("?")[0], **options)

        monkeypatch.setattr(download.requests.Session, "get", get)
        hub.store = store.url
        assert_same(fetch.pull(AT), hub.folder)
    assert {one[3] for one in hub.asked[1:]} == {"Bearer hf_secret"}
    assert sent
    assert not [headers for headers in sent if "Authorization" in headers]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("hf://ours", "give hf://ORG/NAME, or"),
        ("hf://ours/cxr/folder", "give hf://ORG/NAME, or"),
        ("hf://ours/cxr@", "give hf://ORG/NAME, or"),
        ("hf://ours/cxr@../../x", "give hf://ORG/NAME, or"),
        ("hf://ours/cxr?x=1", "give hf://ORG/NAME, or"),
        ("hf://../cxr", "not the name of a repository"),
        ("hf://ours/c xr", "not the name of a repository"),
        ("hf://theirs/cxr", "has no such repository"),
        (f"{AT}@v9", "has no such revision"),
    ],
)
def test_addresses_that_lead_nowhere(hub: Hub, source: str, says: str) -> None:
    refused(says, source)


def test_a_hub_that_does_not_give_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated = True
    refused("its owner grants access on the hub's page")
    hub.gated = False
    for commit in ("", "main", "../../../etc", COMMIT + "0", COMMIT.upper()):
        hub.commit = commit
        refused(r"does not answer as a hub does \(no commit\); check HF_ENDPOINT")
    hub.commit = COMMIT
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE is set")
    monkeypatch.undo()
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:1/{repo_id}"
    )
    refused("does not answer: ")


def test_hostile_files_are_refused(hub: Hub, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(hub.folder, whole)

    def restored() -> None:
        shutil.rmtree(hub.folder)
        shutil.copytree(whole, hub.folder)

    (hub.folder / signing.SUMS).unlink()
    refused(r"not a release: it has no SHA256SUMS")
    restored()
    spoil(hub.folder / release.WEIGHTS)
    refused(rf"model\.safetensors of hf://{REPO}@0123456789ab is not the file .* damaged or altered")
    restored()
    with pytest.raises(SscxrError, match="more than the 100,000 bytes"):
        fetch.pull(AT, most_bytes=100_000)
    (hub.folder / signing.SUMS).write_bytes(10_000 * b"a")
    refused("not a list of SHA-256 sums")
    torch.save(encoder(0).state_dict(), hub.folder / release.WEIGHTS)
    (hub.folder / signing.SUMS).write_bytes(signing.sums_of(hub.folder, release.FILES))
    refused("not a safetensors file")
    restored()
    hub.store = "http://169.254.169.254/latest"
    refused("an address inside this network, which is refused")
    hub.store = "file:///etc"
    refused("redirected from http to file, which is refused")


@pytest.mark.slow
def test_the_command_pulls_from_the_endpoint_that_is_set(hub: Hub, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sscxr.commands.cli", "encoder", "pull", f"{AT}@v1", "--key"]
    done = subprocess.run(
        [*command, hub.folder.parent / "release.pub"],
        env=os.environ | {"HF_ENDPOINT": hub.url, "SSCXR_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert_same(Path(done.stdout.strip()), hub.folder)
