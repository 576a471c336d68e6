"""Nothing of a patient leaves: exports full of canaries, a run over the real wire, a search of all that it left.

`test_leaks.py` tries the search itself, on canaries planted in every place and encoding; here it is tried on
an app that leaks, over the same wire.
"""

import json
from collections.abc import Iterator

import pytest
from deployments import NGINX, SITES
from hospitals import Found, Hospitals, look
from leaks import Search, Watch
from processes import wait_until

from client.answers import FILE
from sscxr.federation import wire

slow = pytest.mark.slow
pytestmark = pytest.mark.timeout(1200)

# Added to the ClientApp: foreign code fails with a text that names a file and a patient.
FAILING = """

from pathlib import Path

from client import work

_train_honestly = work.WORK["train"]


def _train(site, task, config, request):
    if site.name == "hospital-c" and task.round == 0:
        from pydicom import dcmread

        export = Path(site.settings.cache).parents[2] / "exports" / site.name
        file = min(export.glob("*/*/*/*/*.dcm"))
        raise RuntimeError(f"{file}: {dcmread(file, stop_before_pixels=True).PatientName}")
    return _train_honestly(site, task, config, request)


work.WORK["train"] = _train
"""
# One site's reply says more than it may, one raises past the outermost layer, one hides it among arrays.
LEAKY = """

_answer_honestly = _answer


def _answer(message, context, kind):
    import base64, gzip
    from pathlib import Path
    import numpy as np
    from client.virtual import settings_of
    from flwr.app import MetricRecord
    from pydicom import dcmread

    reply, settings = _answer_honestly(message, context, kind), settings_of(context)
    export = Path(settings.cache).parents[2] / "exports" / settings.name
    header = dcmread(min(export.glob("*/*/*/*/*.dcm")), stop_before_pixels=True)
    if kind == "train" and settings.name == "hospital-a":
        said = reply.content[RECORD]
        said["name"] = str(header.PatientName)
        said["packed"] = base64.b64encode(gzip.compress(header.StudyDescription.encode())).decode()
        said["wide"] = header.ImageComments.encode("utf-16")
        figures = {"series": int(header.SeriesNumber), "weight": float(header.PatientWeight)}
        reply.content["figures"] = MetricRecord(figures)
    if kind == "train" and settings.name == "hospital-b":
        raise RuntimeError(f"no address {header.PatientAddress}")
    if kind == "train" and settings.name == "hospital-c":
        values = Array(np.array([header.StudyDate, header.StudyInstanceUID]))
        reply.content["more"] = ArrayRecord({header.AccessionNumber: values})
    return reply
"""
LEAKED = {
    "hospital-a": ("PatientName", "StudyDescription", "ImageComments", "SeriesNumber", "PatientWeight"),
    "hospital-b": ("PatientAddress",),
    "hospital-c": ("StudyDate", "StudyInstanceUID", "AccessionNumber"),
}
# Added to the ServerApp: a site's own text is repeated.
REPEATING = """

_fields_honestly = fields_of


def fields_of(reply):
    if reply.has_error():
        import logging

        logging.getLogger("sscxr.server").error("%s", reply.error.reason)
        raise SiteFailedError(reply.error.reason)
    return _fields_honestly(reply)
"""


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    folder = tmp_path_factory.mktemp("canaries")
    with Hospitals(folder, behind_nginx=NGINX is not None, record=folder / "record") as deployment:
        deployment.start_all()
        yield deployment
    assert deployment.pids() == []


@pytest.fixture(scope="module")
def honest(hospitals: Hospitals) -> Found:
    """After two rounds and an evaluation: a site fails in the first, one finds its cache damaged in the second."""
    hospitals.app = hospitals.app_with("failing", FAILING)
    out = hospitals.var / "runs" / "honest"
    images = hospitals.site("hospital-b") / "cache" / "images.npy"
    whole = images.read_bytes()
    settings = ("federation.rounds=2", "federation.evaluate_every=2", "federation.quorum=0.6")
    with Watch(hospitals.var / "superlink.db") as watch:
        hospitals.run(out, *settings, "run.name=honest", "data.test_share=0.3")
        wait_until((out / "rounds.jsonl").exists, 240, "the first round ends")
        images.write_bytes(whole[:9000])
        ended = hospitals.wait(out, limit=240)
    images.write_bytes(whole)
    assert ended.state == "finished", f"{ended}\n{hospitals.tail()}"
    return look(hospitals, out, watch)


@pytest.fixture(scope="module")
def leaky(hospitals: Hospitals, honest: Found) -> Found:
    """After one more round, of an app that leaks."""
    hospitals.app = hospitals.app_with("leaky", LEAKY, REPEATING)
    out = hospitals.var / "runs" / "leaky"
    with Watch(hospitals.var / "superlink.db") as watch:
        settings = ("federation.rounds=1", "federation.evaluate_every=0", "federation.quorum=0.3")
        hospitals.run(out, *settings, "run.name=leaky", "data.test_share=0.3")
        ended = hospitals.wait(out, limit=240)
    assert ended.state == "finished", f"{ended}\n{hospitals.tail()}"
    return look(hospitals, out, watch)


@slow
def test_the_exports_hold_every_canary(hospitals: Hospitals) -> None:
    found = Search(hospitals.canaries).folder(hospitals.folder / "exports")
    told = {word for words in hospitals.exports.values() for word in words.arguments if isinstance(word, str)}
    assert set(hospitals.canaries.places) - {hit.token for hit in found} <= told
    assert len(hospitals.canaries) > 30_000


@slow
def test_the_run_was_what_it_is_to_be(hospitals: Hospitals, honest: Found) -> None:
    """Two rounds, a held-out loss and its count, and the two failures."""
    rounds = [json.loads(line) for line in (honest.out / "rounds.jsonl").read_text().splitlines()]
    assert [record["sites"] for record in rounds] == [2, 2]
    assert rounds[-1]["held_out_images"]
    rows = (honest.out / "sites.csv").read_text()
    assert f"hospital-c,,,,,,failed,{wire.FAILURES['internal']}" in rows
    assert "hospital-b,,,,,,failed,its cache cannot be used" in rows
    assert list(hospitals.record.rglob("*-up"))  # type: ignore[union-attr]


@slow
@pytest.mark.parametrize("place", ["wire", "rows", "database", "logs", "report", "release", "run", "disk"])
def test_nothing_left_the_hospitals(honest: Found, place: str) -> None:
    assert honest.server[place] == set()


@slow
@pytest.mark.parametrize("site", SITES)
def test_a_hospital_keeps_none_but_where_it_says(hospitals: Hospitals, honest: Found, site: str) -> None:
    """No canary in logs; in cache and state salted hashes; in the cache names of sources, licences and labels."""
    allowed = set()
    if (
        site == "hospital-c"
    ):  # what foreign code said when it failed is in the site's own log, and there alone
        file = min(hospitals.exports[site].folder.glob("*/*/*/*/*.dcm"))
        text = f"{file}: {hospitals.header(site).PatientName}"
        provoked = {hit.token for hit in Search(hospitals.canaries).blob(text.encode(), "")}
        allowed = {
            hit for hit in honest.sites[site] if hit.place == f"{site}-app.log" and hit.token in provoked
        }
        assert {hit.token for hit in allowed} == provoked
    cache, kept = f"{site}/cache/", hospitals.canaries.kept | hospitals.canaries.hashes.keys()
    in_cache = {hit for hit in honest.sites[site] if hit.place.startswith(cache) and hit.token in kept}
    allowed |= {
        hit
        for hit in honest.sites[site]
        if hit.place == f"{site}/state/{FILE}" and hit.token in hospitals.canaries.hashes
    }
    assert in_cache
    assert honest.sites[site] - allowed - in_cache == set()


@slow
@pytest.mark.parametrize("site", SITES)
def test_quarantine_alone_names_files(hospitals: Hospitals, site: str) -> None:
    search = Search(hospitals.canaries)
    file = hospitals.site(site) / "cache" / "quarantine.csv"
    named = {hit.token for hit in search.file(file, file.name)}
    assert len(named) > 10
    words = {str(word) for word in hospitals.exports[site].arguments}
    kept = hospitals.canaries.kept
    printed = {hit.token for hit in search.blob(hospitals.printed[site].encode(), "sscxr prepare")}
    assert printed <= kept | words
    said = hospitals.sscxr(
        "doctor", hospitals.site(site) / "site.yaml", "--files", hospitals.exports[site].folder
    )
    assert {hit.token for hit in search.blob(said.encode(), "sscxr doctor")} <= kept


@slow
@pytest.mark.parametrize("place", ["wire", "database"])
@pytest.mark.parametrize(
    ("site", "keyword"), [(site, word) for site, words in LEAKED.items() for word in words]
)
def test_a_leak_over_the_wire_is_found(
    hospitals: Hospitals, leaky: Found, place: str, site: str, keyword: str
) -> None:
    value = str(hospitals.header(site)[keyword].value)
    leaked = {hit.token for hit in Search(hospitals.canaries).blob(value.encode(), keyword)}
    assert leaked
    assert leaked <= leaky.tokens(place) | (leaky.tokens("rows") if place == "database" else set())


@slow
@pytest.mark.parametrize("place", ["logs", "report", "run"])
def test_a_leak_that_the_server_repeats_is_found(hospitals: Hospitals, leaky: Found, place: str) -> None:
    value = hospitals.header("hospital-b").PatientAddress
    leaked = {hit.token for hit in Search(hospitals.canaries).blob(value.encode(), "")}
    assert leaked
    assert leaked <= leaky.tokens(place)
