"""Fine-tuning in rounds, through the apps that hospitals run: what is averaged, what stays, who takes part."""

import json
from pathlib import Path
from typing import Any

import federation as fed
import numpy as np
import pytest
import safetensors.torch
import torch
from marks import slow
from omegaconf import OmegaConf

from client import app as client
from server.app import run
from server.ledger import Ledger
from sim import alone
from sscxr import stages
from sscxr.data.cache.cache import open_cache
from sscxr.finetuning import finetuned, site_finetune
from sscxr.release import release
from sscxr.runs import read_sites
from sscxr.training.loop import NonFiniteLossError
from sscxr.training.parts import Parts, split

CLASSIFY = ("run.stage=classify", "classify.labels=[pneumonia]", "finetune.batch_size=8", "finetune.lr=1e-2")
SEGMENT = ("run.stage=segment", "encoder.depth=4", "segment.feature_size=4", "finetune.batch_size=8")
MIXED = np.arange(20) % 2


def site(
    folder: Path, name: str, labels: dict[str, Any], stages_allowed: str = "classify", **more: Any
) -> Path:
    """A site of twenty images with labels."""
    file = fed.make_site(
        folder / name, name, images=20, **{f"label:{k}": v for k, v in labels.items()}, **more
    )
    settings = OmegaConf.merge(OmegaConf.load(file), {"stages": [stages_allowed]})
    file.write_text(OmegaConf.to_yaml(settings))
    return file


def weights(out: Path, round_number: int = 2) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(out / f"checkpoints/round-{round_number:05d}/encoder.safetensors")


def federated(sites: list[Path], out: Path, *overrides: str) -> Path:
    run(fed.Grid(client.app, sites), fed.settings("federation.rounds=2", *overrides), out, resume=False)
    return out


def kept_by(file: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(max((file.parent / "state").rglob("*.safetensors")))


def test_encoder_and_head_are_averaged_and_make_a_model(tmp_path: Path) -> None:
    sites = [site(tmp_path, name, {"pneumonia": MIXED}) for name in ("anna", "bona")]
    out = federated(sites, tmp_path / "out", *CLASSIFY)
    model, spec = finetuned.load(out / "model")
    assert (spec.task, spec.labels) == ("classify", ["pneumonia"])
    card = (out / "encoder" / "README.md").read_text()
    assert "fine-tuned with" in card
    assert "without labels" not in card
    encoder, head = split(weights(out))
    assert all(torch.equal(model.head.state_dict()[name], tensor) for name, tensor in head.items())
    assert torch.equal(release.load_encoder(out / "encoder").state_dict()["norm.bias"], encoder["norm.bias"])
    start = stages.of(fed.settings(*CLASSIFY)).start()
    assert all(not torch.equal(tensor, split(start)[1][name]) for name, tensor in head.items())
    for file in sites:
        assert not split(kept_by(file))[1], "a head that is averaged is kept nowhere else"


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["gmml.blocks=[12]", "finetune.img_size=48"])
def test_an_encoder_of_another_depth_or_size_than_the_recipes_is_released(
    tmp_path: Path, settings: str
) -> None:
    sites = [site(tmp_path, name, {"pneumonia": MIXED}) for name in ("anna", "bona")]
    out = federated(sites, tmp_path / "out", *CLASSIFY, settings)
    released = release.load_encoder(out / "encoder").state_dict()
    trained = finetuned.load(out / "model")[0].encoder.state_dict()
    assert all(torch.equal(released[name], tensor) for name, tensor in trained.items())


def test_a_head_that_is_kept_never_leaves_its_site(tmp_path: Path) -> None:
    sites = [site(tmp_path, "anna", {"pneumonia": MIXED}), site(tmp_path, "bona", {"pneumonia": 1 - MIXED})]
    out = federated(sites, tmp_path / "out", *CLASSIFY, "federation.share_head=false")
    assert not split(weights(out))[1]
    assert not (out / "model").exists()
    heads = [split(kept_by(file))[1] for file in sites]
    assert not torch.equal(heads[0]["weight"], heads[1]["weight"])


@pytest.mark.slow
def test_two_runs_give_the_same_bytes_and_one_that_was_stopped_too(tmp_path: Path) -> None:
    made = []
    for name in ("first", "second"):
        sites = [site(tmp_path / name, one, {"pneumonia": MIXED}) for one in ("anna", "bona")]
        made.append(federated(sites, tmp_path / name / "out", *CLASSIFY))
    third = [site(tmp_path / "third", one, {"pneumonia": MIXED}) for one in ("anna", "bona")]
    config, out = fed.settings("federation.rounds=2", *CLASSIFY), tmp_path / "third" / "out"

    class EndedError(Exception):
        pass

    class Half(fed.Grid):
        asked = 0

        def push_messages(self, messages: Any) -> Any:
            messages = list(messages)
            self.asked += messages[0].metadata.message_type == "train"
            if self.asked > 1:
                raise EndedError
            return super().push_messages(messages)

    with pytest.raises(EndedError):
        run(Half(client.app, third), config, out, resume=False)
    run(fed.Grid(client.app, third), config, out, resume=True)
    files = [(folder / "model" / "model.safetensors").read_bytes() for folder in (*made, out)]
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize(
    ("labels", "takes_part"),
    [
        ({"pneumonia": np.ones(20)}, True),  # one class only
        slow({"pneumonia": np.where(MIXED, np.nan, 1.0)}, True),  # half of the images without a label
        slow({"covid19": MIXED}, True),  # another label of the run's two
        ({"normal": MIXED}, False),  # none of them
        slow({"pneumonia": np.full(20, np.nan)}, False),
    ],
)
def test_sites_differ_in_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: dict[str, Any], takes_part: bool
) -> None:
    monkeypatch.setattr("server.roster.sleep", lambda seconds: pytest.fail("it waits for labels to appear"))
    sites = [site(tmp_path, "anna", {"pneumonia": MIXED}), site(tmp_path, "bona", labels)]
    waiting = ("federation.quorum=0.5", "federation.start_timeout=600")
    settings = (*CLASSIFY, "classify.labels=[pneumonia,covid19]", *waiting)
    out = federated(sites, tmp_path / "out", *settings, "federation.sites=[anna,bona]")
    rows = read_sites(out / "sites.csv")
    outcomes = set(rows[rows["site"] == "bona"]["outcome"])
    assert outcomes == ({"folded"} if takes_part else {"failed"})
    assert set(rows[rows["site"] == "anna"]["outcome"]) == {"folded"}


def tuned(*overrides: str) -> Any:
    return fed.settings(*CLASSIFY, *overrides)


def test_a_site_that_allows_pretraining_alone_is_not_asked_to_fine_tune(tmp_path: Path) -> None:
    file = site(tmp_path, "anna", {"pneumonia": MIXED}, stages_allowed="pretrain")
    reply = fed.ask(tuned(), file, "query", encoder=False)
    assert dict(reply.content.config_records[client.RECORD])["failure"] == "not allowed"


@pytest.mark.slow
def test_lungs_are_segmented_across_sites(tmp_path: Path) -> None:
    sites = []
    for name in ("anna", "bona"):
        file = site(tmp_path, name, {}, stages_allowed="segment", has_mask=np.arange(20) % 4 > 0)
        masks = np.zeros((20, 32, 32), np.uint8)
        masks[:, 8:24, 8:24] = 255
        np.save(file.parent / "cache" / "masks.npy", masks)
        sites.append(file)
    out = federated(sites, tmp_path / "out", *SEGMENT, "federation.evaluate_every=1")
    assert finetuned.load(out / "model")[1].task == "segment"
    records = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert records[0]["images"] == 24, "twelve of each site's sixteen training images have a mask"
    assert all(0 <= score <= 1 for record in records for score in record["scores"].values())
    assert records[-1]["scores"].keys() == {"anna", "bona"}


@pytest.mark.parametrize(("positives", "told"), [slow(0, False), (1, False), (3, True), slow(8, False)])
def test_figures_whose_classes_are_small_cells_are_not_told(
    tmp_path: Path, positives: int, told: bool
) -> None:
    labels = np.concatenate([np.arange(8) < positives, MIXED[:12]]).astype(float)
    file = site(tmp_path, "anna", {"pneumonia": labels}, split=np.where(np.arange(20) < 8, 0.0, 0.9))
    config = tuned("federation.rounds=1", "federation.evaluate_every=1", "privacy.min_cell=3")
    run(fed.Grid(client.app, [file]), config, tmp_path / "out", resume=False)
    record = json.loads((tmp_path / "out" / "rounds.jsonl").read_text())
    assert (record["scores"] != {}) == told
    assert record["held_out_images"] == (8 if told or not positives % 8 else 0)


def test_masks_of_another_size_are_the_cache_s_fault(tmp_path: Path) -> None:
    file = site(tmp_path, "anna", {}, stages_allowed="segment", has_mask=np.ones(20))
    np.save(file.parent / "cache" / "masks.npy", np.zeros((20, 16, 16), np.uint8))
    reply = fed.ask(fed.settings(*SEGMENT), file, "query", encoder=False)
    assert dict(reply.content.config_records[client.RECORD])["failure"] == "cache"


def test_what_the_server_sends_fits_what_a_site_trains(tmp_path: Path) -> None:
    for settings in (CLASSIFY, SEGMENT):
        config = fed.settings(*settings)
        model = site_finetune.build_model(config)
        parts = site_finetune.parts_of(model, share_head=True)
        sent = stages.of(config).start()
        assert sent.keys() == parts.shared().keys()
        whole = sum(tensor.numel() for tensor in model.state_dict().values())
        assert sum(tensor.numel() for tensor in sent.values()) == whole


def test_parts_are_either_shared_or_local() -> None:
    encoder, head = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
    shared, kept = (Parts(encoder, head, share_head=choice) for choice in (True, False))
    assert shared.local() == {}
    assert shared.shared().keys() == {"weight", "bias", "head.weight", "head.bias"}
    assert kept.shared().keys() == {"weight", "bias"}
    assert kept.local().keys() == {"head.weight", "head.bias"}


def test_a_released_encoder_is_the_start(tmp_path: Path) -> None:
    sites = [fed.make_site(tmp_path / name, name, images=20) for name in ("anna", "bona")]
    run(fed.Grid(client.app, sites), fed.settings("federation.rounds=1"), tmp_path / "pre", resume=False)
    config = stages.load_config(
        "smoke", [*fed.SMALL, *CLASSIFY, f"encoder.start={tmp_path / 'pre' / 'encoder'}", "encoder.depth=3"]
    )
    assert config.encoder.depth == 1, "the sizes are the encoder's own"
    released = release.load_encoder(tmp_path / "pre" / "encoder").state_dict()
    begun = split(stages.of(config).start())[0]
    assert all(torch.equal(begun[name], tensor) for name, tensor in released.items())


def test_unknown_labels_weigh_nothing(tmp_path: Path) -> None:
    cache = open_cache(site(tmp_path, "anna", {"pneumonia": np.where(MIXED, np.nan, 1.0)}).parent / "cache")
    rows = stages.of(tuned()).usable(cache, np.arange(20))
    assert rows.tolist() == list(range(0, 20, 2))
    assert stages.of(tuned()).tellable(cache, rows, 3)


@pytest.mark.slow
def test_a_site_whose_own_training_diverges_has_nothing_to_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = [site(tmp_path / "out" / "sites", name, {"pneumonia": MIXED}) for name in ("anna", "bona")]
    out = federated(sites, tmp_path / "out", *CLASSIFY)
    config, train = fed.settings("federation.rounds=2", *CLASSIFY), site_finetune.SiteFineTuning.train_round

    def diverges(training: Any, rows: Any, **given: Any) -> Any:
        if given["site"] == "bona" and given["round_number"] == 1:
            raise NonFiniteLossError("weights that are not finite")
        return train(training, rows, **given)

    monkeypatch.setattr(site_finetune.SiteFineTuning, "train_round", diverges)
    state = Ledger(out, config, resume=True).last()
    assert state is not None
    anna, bona = alone.tuned(out, config, state.roster, state, torch.device("cpu"))
    assert None not in (anna.federated, anna.alone, anna.gap)
    assert (bona.site, bona.figure, bona.images > 0) == ("bona", "auroc", True)
    assert bona.federated is bona.alone is bona.gap is None


@pytest.mark.slow
def test_a_site_that_the_federation_serves_worse_keeps_its_own_model(tmp_path: Path) -> None:
    """At two sites, dark images have the label at one and not at the other: their average can tell neither."""
    out, dark = tmp_path / "out", np.arange(120) % 2 == 0
    for name, positive in (("anna", dark), ("bona", ~dark)):
        label = {"label:pneumonia": positive.astype(float)}
        file = fed.make_site(out / "sites" / name, name, images=120, **label)
        file.write_text(file.read_text() + "stages: [classify]\n")
        pixels = np.load(file.parent / "cache" / "images.npy")
        pixels[dark] //= 2
        np.save(file.parent / "cache" / "images.npy", pixels)
    config = fed.settings(*CLASSIFY, "federation.rounds=8")
    sites = [out / "sites" / name / "site.yaml" for name in ("anna", "bona")]
    run(fed.Grid(client.app, sites), config, out, resume=False)
    state = Ledger(out, config, resume=True).last()
    assert state is not None
    scores = alone.tuned(out, config, state.roster, state, torch.device("cpu"))
    assert any(score.worse for score in scores)
    told, name = "".join(alone.warnings(scores)), "blocks.0.attn.qkv.weight"
    for score in scores:
        assert (score.site in told) is (out / "alone" / score.site).is_dir() is score.worse
        if score.worse:
            own = finetuned.load(out / "alone" / score.site)[0].state_dict()
            assert not torch.equal(own[f"encoder.{name}"], state.encoder[name])
