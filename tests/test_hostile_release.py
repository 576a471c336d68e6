"""Words in a release that somebody made to mislead whoever looks at it."""

from pathlib import Path

import pytest

from sscxr import finetuned, release


@pytest.mark.parametrize(
    "text", ["1.0\nsignature     this key's", "1.0\x1b[2J\x1b[1;1Hsums right", "1\u202e0"]
)
def test_what_a_release_says_of_itself_is_one_printable_line(text: str) -> None:
    told = release.one_line(text)
    assert told.isprintable()
    assert told.startswith("1")


def test_facts_are_told_in_such_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Encoder:
        blocks, num_features = (), 4
        patch_embed = type("Patches", (), {"patch_size": (8, 8)})

        def parameters(self) -> list[object]:
            return []

    forged = "1.0\nsignature     this key's"
    config = {
        "architecture": "vit",
        "sscxr": {"version": forged, "licence": forged, "rounds": forged},
        "pretrained_cfg": {"input_size": [1, 8, forged], "mean": [0.5], "std": [0.25]},
    }
    (tmp_path / release.WEIGHTS).write_bytes(b"")
    monkeypatch.setattr(release, "load_encoder", lambda folder: Encoder())
    monkeypatch.setattr(release, "read_config", lambda folder: config)
    facts = release.facts(tmp_path)
    assert facts["version"] == facts["licence"] == "1.0 signature this key's"
    assert facts["rounds"] is None
    assert facts["signature"] == "none"
    assert not [value for value in facts.values() if "\n" in str(value)]


def test_a_config_of_endless_depth_is_no_fine_tuned_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert not finetuned.is_model(tmp_path)
