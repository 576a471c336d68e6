"""What the ClientApp answers to who are you, train and evaluate, and what it keeps."""

import subprocess
import sys
from pathlib import Path

import federation as fed
import safetensors.torch
import torch
from answers import said, states, update

from client.app import RECORD
from sscxr import config as configs
from sscxr.federation import codecs, wire


def test_hello_says_who_it_is_and_no_more(site: Path) -> None:
    reply = fed.ask(fed.settings(), site, "query", encoder=False)
    hello = wire.from_record(wire.Hello, said(reply))
    assert hello == wire.Hello("anna", wire.fingerprint(configs.recipe_hash(fed.settings())), 8)
    assert set(reply.content) == {RECORD}
    assert not states(site)


def test_training_replies_with_the_change_and_keeps_the_rest(site: Path) -> None:
    config = fed.settings("federation.local_epochs=3", "federation.uplink=fp32")
    reply = fed.ask(config, site)
    read = wire.from_record(wire.TrainReply, said(reply))
    assert (read.site, read.round, read.attempt, read.images, read.steps) == ("anna", 0, 0, 8, 3)
    assert read.state == "new"
    assert codecs.norm(codecs.decode(update(reply), "fp32", fed.start(config).encoder)) > 0
    kept = safetensors.torch.load(states(site)["r00000-a00.safetensors"])
    assert {name.split(".")[0] for name in kept} == {"head", "exp_avg", "exp_avg_sq", "step"}
    assert not any(name.startswith("encoder.") for name in kept), "what is shared is not kept beside"


def test_evaluation_trains_nothing_and_keeps_no_more_than_what_it_told(site: Path) -> None:
    config = fed.settings()
    first, second = (said(fed.ask(config, site, "evaluate")) for _ in range(2))
    assert first == second
    read = wire.from_record(wire.EvaluateReply, first)
    assert read.images == 2
    assert read.loss > 0
    assert set(states(site)) == {"counts.json"}


def test_evaluation_without_held_out_images_needs_no_encoder(site: Path) -> None:
    reply = fed.ask(fed.settings("data.test_share=0"), site, "evaluate", encoder=False)
    read = wire.from_record(wire.EvaluateReply, said(reply))
    assert (read.images, read.loss) == (0, 0.0)


def test_work_at_a_site_leaves_the_global_generator_alone(site: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fed.ask(fed.settings("encoder.drop_path=0.3"), site)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_courier_waits_for_nothing_but_flower() -> None:
    """Each message starts a process: what it imports is paid for by every site in every round."""
    code = (
        "import sys, sscxr.federation.courier\n"
        "assert not {'numpy', 'omegaconf', 'yaml', 'torch', 'flwr', 'pandas'} & sys.modules.keys()\n"
        "import client.app\n"
        "heavy = {'omegaconf', 'torch', 'timm', 'pandas', 'sscxr.config', 'client.work'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
