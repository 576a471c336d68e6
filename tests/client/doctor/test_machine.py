"""This machine against what the join file and the site's settings say."""

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from client.doctor import machine
from client.doctor.checks import Check
from client.settings import SiteSettings
from sscxr import config as configs
from sscxr.federation import wire
from sscxr.federation.join import Join, Payload, installed
from sscxr.stages import memory
from sscxr.training import device

CONFIG = configs.load("default", ["run.threads=1"])


def a_join(**other: Any) -> Join:
    here = installed()
    fingerprint = wire.fingerprint(configs.recipe_hash(CONFIG))
    whole = Join(
        "lungs",
        "localhost:1",
        "",
        here,
        fingerprint,
        "",
        Payload(1.0, 2.0),
        600.0,
        0.1,
        "/v1/probe",
        "2026-11-22",
    )
    return dataclasses.replace(whole, **other)


def a_site(**other: Any) -> SiteSettings:
    return SiteSettings("a", "cache", "state", **other)


def only(checks: Iterator[Check]) -> Check:
    (check,) = checks
    return check


def test_the_same_versions_are_ok() -> None:
    assert only(machine.versions(a_join())).state == "ok"
    local = installed() | {"torch": installed()["torch"].split("+")[0] + "+cu126"}
    assert only(machine.versions(a_join(versions=local))).state == "ok"


@pytest.mark.parametrize(
    ("name", "version", "state"),
    [
        ("torch", "1.0.0", "failed"),
        ("timm", "0.1", "failed"),
        ("sscxr", "99.0", "failed"),
        ("flwr", "1.30.0", "failed"),
        ("flwr", "PATCH", "warning"),
        ("python", "3.99.0", "warning"),
        ("python", "PATCH", "ok"),
    ],
)
def test_other_versions(name: str, version: str, state: str) -> None:
    here = installed()
    version = version.replace("PATCH", ".".join([*here[name].split(".")[:2], "99"]))
    check = only(machine.versions(a_join(versions=here | {name: version})))
    assert check.state == state
    assert state == "ok" or check.advice == f"install the coordinator's: {name} {version}"


def test_the_fingerprint() -> None:
    assert only(machine.recipe(a_join(), CONFIG)).state == "ok"
    check = only(machine.recipe(a_join(), configs.load("default", ["pretrain.lr=1e-3"])))
    assert check.state == "failed"
    assert "recipe" in check.value
    other = a_join(fingerprint=a_join().fingerprint.replace(torch.__version__.split("+")[0], "0.1"))
    assert "the run's 0.1" in only(machine.recipe(other, CONFIG)).value


def test_memory_against_need_and_limit() -> None:
    assert only(machine.memory(8.0, 4.0, None)).state == "ok"
    assert only(machine.memory(5.0, 4.0, None)).state == "warning"
    assert only(machine.memory(3.0, 4.0, None)).state == "failed"
    assert (
        only(machine.memory(8.0, 4.0, a_site(memory_gb=3.0))).value
        == "needs about 4.0 GB, site.yaml allows 3.0 GB"
    )
    assert only(machine.memory(8.0, 4.0, a_site(memory_gb=4.0))).state == "ok"


def test_free_memory_is_within_the_machines() -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine.free_memory() <= whole


def test_memory_that_no_machine_has() -> None:
    config = configs.load("default", ["run.threads=1", "pretrain.batch_size=65536", "pretrain.views=16"])
    found = list(machine.device(a_join(), a_site(device="cpu"), config))
    assert [check.state for check in found] == ["ok", "failed"]


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = list(machine.device(a_join(), a_site(device="cuda"), CONFIG))
    assert found[0].state == "failed"
    assert next(machine.device(a_join(), a_site(), CONFIG)).state == "ok"


def test_the_need_is_this_device_s_and_a_fine_tuning_s_that_of_the_join_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def need(config: configs.Config) -> str:
        return list(machine.device(a_join(memory_gb=3.0), a_site(device="cpu"), config))[-1].value

    monkeypatch.setattr(machine, "free_memory", lambda: 50e9)
    plain = memory.of_pretraining(CONFIG, bf16=False) / 1e9
    low = memory.of_pretraining(CONFIG, bf16=True) / 1e9
    assert low < plain
    monkeypatch.setattr(device, "_gains_from_bf16", lambda device: False)
    assert need(CONFIG) == f"50.0 GB free, needs about {plain:.1f} GB"
    monkeypatch.setattr(device, "_gains_from_bf16", lambda device: True)
    assert need(CONFIG) == f"50.0 GB free, needs about {low:.1f} GB"
    tuning = configs.load("default", ["run.stage=classify", "classify.labels=[cold]"])
    assert need(tuning) == "50.0 GB free, needs about 3.0 GB"


@pytest.mark.parametrize(("free", "state"), [(20e9, "ok"), (14e9, "warning"), (9e9, "failed")])
def test_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch, free: float, state: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 24e9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(machine, "free_memory", lambda: 7e9)
    monkeypatch.setattr(device, "_gains_from_bf16", lambda device: True)
    monkeypatch.setattr(memory, "of_pretraining", lambda config, bf16: 10e9)
    found = list(machine.device(a_join(), a_site(device="cuda"), CONFIG))
    assert [check.state for check in found] == [state, "ok"]
    assert found[0].value.startswith(f"a GPU, {free / 1e9:.1f} of 24.0 GB free")
    assert next(machine.device(a_join(), a_site(device="cuda:1"), CONFIG)).state == "failed"
    assert next(machine.device(a_join(), a_site(device="cpu"), CONFIG)).value.startswith("CPU")


def test_threads() -> None:
    cores = len(os.sched_getaffinity(0))
    assert only(machine.threads(CONFIG, a_site())).state == "ok"
    many = configs.load("default", [f"run.threads={cores + 1}"])
    assert only(machine.threads(many, a_site())).state == "warning"
    check = only(machine.threads(many, a_site(threads=cores)))
    assert (check.state, check.value) == (
        "failed",
        f"the recipe runs on {cores + 1}, site.yaml allows {cores}",
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount here")
    if done.returncode:
        pytest.skip(f"this user may not mount: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_nearly_full(small_disk: Path) -> None:
    check = only(machine.disk("disk", small_disk / "state", a_join()))
    assert check.state == "failed"
    assert check.value == "0.0021 GB free"
    assert "at least 1.0 GB" in check.advice
    (small_disk / "fill").write_bytes(bytes(2 << 20))
    assert only(machine.disk("disk", small_disk / "state", a_join())).value == "0 GB free"


def test_a_disk_too_small_for_the_payload(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free / 1e6  # MB
    huge, large = Payload(1.0, free / 8), Payload(free / 12, 1.0)
    assert only(machine.disk("disk", tmp_path / "not" / "there", a_join(payload=huge))).state == "failed"
    assert only(machine.disk("disk", tmp_path, a_join(payload=large))).state == "warning"


def test_a_folder_that_this_user_may_not_write_to() -> None:
    check = only(machine.disk("disk", Path("/proc/sscxr"), a_join()))
    assert (check.state, check.value) == ("failed", "not writable by this user")


def test_a_paused_site_and_a_missing_join_file() -> None:
    assert [check.state for check in machine.settings_and_join(a_site(), a_join())] == ["ok", "ok"]
    found = list(machine.settings_and_join(a_site(paused=True), None))
    assert [check.state for check in found] == ["warning", "warning"]
