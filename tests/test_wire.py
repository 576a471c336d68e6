"""The wire: what is malformed is refused, and what leaves a site is the list in `sscxr/wire.py`, no more."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from sscxr import wire
from sscxr.wire import WireError

LIKE = {"a.weight": torch.zeros(3, 4), "b.bias": torch.zeros(5)}
TASK = wire.Task("run", 3, 1, "r00002-a00", "run: {}", "{}", 60.0)
HELLO = wire.Hello("site-1", 40, "{}")
TRAIN = wire.TrainReply("site-1", 3, 1, "{}", 40, 3, 0.5, 1.5, "kept")
EVALUATE = wire.EvaluateReply("site-1", 3, 12, 0.25, "{}")
FAILURE = wire.Failure("site-1", "memory")


def tensors(seed: int = 0, scale: float = 1.0) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {name: torch.randn(like.shape, generator=source) * scale for name, like in LIKE.items()}


# ---- arrays


def test_fp32_carries_every_bit() -> None:
    sent = tensors()
    received = wire.decode(wire.encode(sent, "fp32"), "fp32", LIKE)
    assert all(torch.equal(received[name], sent[name]) for name in LIKE)


def test_fp16_carries_the_nearest_half_and_comes_back_as_fp32() -> None:
    sent = tensors()
    received = wire.decode(wire.encode(sent, "fp16"), "fp16", LIKE)
    for name in LIKE:
        assert received[name].dtype == torch.float32
        assert torch.equal(received[name], sent[name].half().float())


def test_fp16_halves_the_bytes() -> None:
    sizes = {codec: wire.payload_bytes(wire.encode(tensors(), codec)) for codec in ("fp16", "fp32")}
    assert sizes == {"fp16": 2 * 17, "fp32": 4 * 17}


def test_what_decode_gives_is_not_the_message_memory() -> None:
    arrays = wire.encode(tensors(), "fp32")
    decoded = wire.decode(arrays, "fp32", LIKE)
    arrays["b.bias"][:] = 7
    assert not (decoded["b.bias"] == 7).any()


@pytest.mark.parametrize("value", [65504.0, -65504.0])
def test_fp16_holds_its_largest_value(value: float) -> None:
    encoded = wire.encode({"b.bias": torch.full((5,), value)}, "fp16")
    assert (encoded["b.bias"] == value).all()


@pytest.mark.parametrize("value", [65536.0, -1e6, math.inf])
def test_beyond_fp16_is_refused_at_the_sender(value: float) -> None:
    with pytest.raises(WireError, match=r"b\.bias has values beyond fp16's range"):
        wire.encode({"b.bias": torch.tensor([0.0, value])}, "fp16")


def test_unknown_codec_names_the_known_ones() -> None:
    for call in (lambda: wire.encode(LIKE, "int3"), lambda: wire.decode({}, "int3", LIKE)):
        with pytest.raises(WireError, match="'int3'; there are: fp32, fp16"):
            call()


def malformed() -> dict[str, tuple[str, dict[str, Any]]]:
    good = wire.encode(tensors(), "fp32")
    bias = good["b.bias"]
    spoilt = {value: bias.copy() for value in (math.nan, math.inf, -math.inf)}
    for value, array in spoilt.items():
        array[2] = value
    structured = np.zeros(5, dtype=[("DOE_JANE", "<f4")])
    return {
        "missing": ("missing tensor b.bias", {"a.weight": good["a.weight"]}),
        "nothing": ("missing tensor a.weight", {}),
        "unexpected": (r"unexpected tensor \(1 in all\)", {**good, "DOE_JANE": bias}),
        "fp64": ("wrong dtype float64", {**good, "b.bias": bias.astype(np.float64)}),
        "fp16": ("wrong dtype float16", {**good, "b.bias": bias.astype(np.float16)}),
        "integers": ("wrong dtype int32", {**good, "b.bias": bias.astype(np.int32)}),
        "other byte order": ("wrong dtype", {**good, "b.bias": bias.astype(">f4")}),
        "structured": ("wrong dtype void", {**good, "b.bias": structured}),
        "longer": ("wrong shape", {**good, "b.bias": np.zeros(6, np.float32)}),
        "transposed": ("wrong shape", {**good, "a.weight": good["a.weight"].T}),
        "scalar": ("wrong shape", {**good, "b.bias": np.float32(0).reshape(())}),
        "broadcastable": ("wrong shape", {**good, "b.bias": np.zeros(1, np.float32)}),
        "NaN": ("NaN or infinity in b.bias", {**good, "b.bias": spoilt[math.nan]}),
        "Inf": ("NaN or infinity in b.bias", {**good, "b.bias": spoilt[math.inf]}),
        "-Inf": ("NaN or infinity in b.bias", {**good, "b.bias": spoilt[-math.inf]}),
    }


@pytest.mark.parametrize("case", malformed())
def test_malformed_arrays_are_refused_with_the_right_word(case: str) -> None:
    word, arrays = malformed()[case]
    with pytest.raises(WireError, match=word) as error:
        wire.decode(arrays, "fp32", LIKE)
    assert "DOE" not in str(error.value)


def test_norm_is_over_all_tensors() -> None:
    together = torch.cat([tensor.flatten() for tensor in tensors().values()])
    assert wire.norm(tensors()) == pytest.approx(float(together.norm()), rel=1e-6)


# ---- messages


@pytest.mark.parametrize("message", [TASK, HELLO, TRAIN, EVALUATE, FAILURE], ids=lambda m: type(m).__name__)
def test_messages_come_back_as_they_were(message: Any) -> None:
    assert wire.from_record(type(message), wire.to_record(message)) == message


def test_what_leaves_a_site_is_this_list() -> None:
    """A field added to a reply is a decision on privacy: change docs/privacy.md with this list."""
    replies = (wire.Hello, wire.TrainReply, wire.EvaluateReply, wire.Failure)
    assert {kind.__name__: [item.name for item in fields(kind)] for kind in replies} == {
        "Hello": ["site", "images", "fingerprint"],
        "TrainReply": [
            *("site", "round", "attempt", "fingerprint", "images", "steps", "loss", "seconds", "state"),
        ],
        "EvaluateReply": ["site", "round", "images", "loss", "counts"],
        "Failure": ["site", "failure"],
    }


@pytest.mark.parametrize("name", [item.name for item in fields(wire.TrainReply)])
def test_a_missing_field_is_refused(name: str) -> None:
    record = wire.to_record(TRAIN)
    del record[name]
    with pytest.raises(WireError, match=f"missing: {name}"):
        wire.from_record(wire.TrainReply, record)


def test_an_unexpected_field_is_refused_and_not_repeated() -> None:
    with pytest.raises(WireError, match="unexpected: 1") as error:
        wire.from_record(wire.TrainReply, {**wire.to_record(TRAIN), "DOE^JANE": "1961"})
    assert "DOE" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("images", value) for value in ("40", 40.0, True, None, [40], b"40")),
        *(("loss", value) for value in ("0.5", True, None, [0.5])),
        *(("site", value) for value in (1, None, b"site-1", ["site-1"])),
    ],
)
def test_a_field_of_another_type_is_refused(field: str, value: object) -> None:
    with pytest.raises(WireError, match=rf"TrainReply\.{field} is {type(value).__name__}"):
        wire.from_record(wire.TrainReply, {**wire.to_record(TRAIN), field: value})


@pytest.mark.parametrize("field", ["loss", "seconds"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_refused(field: str, value: float) -> None:
    with pytest.raises(WireError, match=rf"TrainReply\.{field} is"):
        wire.from_record(wire.TrainReply, {**wire.to_record(TRAIN), field: value})


def test_a_whole_number_may_stand_for_a_figure() -> None:
    read = wire.from_record(wire.TrainReply, {**wire.to_record(TRAIN), "loss": 1})
    assert read == replace(TRAIN, loss=1.0)
    assert type(read.loss) is float


@pytest.mark.parametrize("name", ["a", "st-mary_2.north", "9", "x" * 64])
def test_plain_names_pass(name: str) -> None:
    assert wire.check_name(name, "site") == name


@pytest.mark.parametrize(
    "name", ["", "x" * 65, "-a", ".", "..", "../a", "a/b", "a\\b", "a b", "a\n", "=1+1", "é", "a,b", "a\x00"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(WireError, match="1 to 64 letters") as error:
        wire.check_name(name, "site")
    assert "\n" not in str(error.value)


def test_generations_sort_as_they_came() -> None:
    placed = [(0, 0), (0, 1), (0, 10), (1, 0), (2, 3), (10, 0), (10_000, 0)]
    names = [wire.generation(*place) for place in placed]
    assert names == sorted(names)
    assert all(wire.check_name(name, "generation") for name in names)


def test_the_fingerprint_differs_with_the_recipe_and_holds_the_versions_that_matter() -> None:
    one, other = json.loads(wire.fingerprint("1")), json.loads(wire.fingerprint("2"))
    assert {key for key in one if one[key] != other[key]} == {"recipe"}
    assert one.keys() == {"wire", "cache", "recipe", "sscxr", "torch", "timm"}


# ---- counts


def tables(cells: int, total: int) -> Iterator[tuple[int, ...]]:
    """Every table of so many cells and this total."""
    if cells == 1:
        yield (total,)
        return
    for first in range(total + 1):
        yield from ((first, *rest) for rest in tables(cells - 1, total - first))


@pytest.mark.parametrize(
    ("cells", "largest", "minimum"), [(2, 20, 5), (3, 24, 4), (3, 12, 1), (4, 18, 3), (5, 12, 2)]
)
def test_no_small_count_can_be_worked_out_from_the_total(cells: int, largest: int, minimum: int) -> None:
    """By brute force over all small tables, for one who knows the total, what is told, and this very rule.

    What such a person sees is the same for every table of a class below. In each class, each dropped cell takes
    every value from 0 to what the class's dropped cells sum to.
    """
    names = "abcde"[:cells]
    classes = defaultdict(set)
    for total in range(largest + 1):
        for table in tables(cells, total):
            told = wire.suppress(dict(zip(names, table, strict=True)), minimum)
            classes[total, tuple(told.items())].add(table)
    assert any(0 < len(told) < cells for _, told in classes) or cells == 2
    for (total, told), possible in classes.items():
        dropped = [place for place, name in enumerate(names) if name not in dict(told)]
        left = total - sum(count for _, count in told)
        if not dropped:
            assert min(count for _, count in told) >= minimum
        elif left:  # a total of nothing says that every cell is nothing, and tells of nobody
            assert len(dropped) >= 2
            assert left >= minimum or not told
            for place in dropped:
                seen = {table[place] for table in possible}
                assert {0, left} <= seen, (total, told, seen)
                assert len(seen & set(range(minimum))) > 1 or minimum == 1


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ({"F": 300, "M": 400, "unknown": 20}, {"F": 300, "M": 400, "unknown": 20}),
        ({"F": 300, "M": 400, "unknown": 2}, {"M": 400}),  # F too, or the total would give `unknown` away
        ({"present": 12, "absent": 500, "unknown": 0}, {"absent": 500}),
        ({"present": 3, "absent": 500}, {}),
        ({"a": 9, "b": 9, "c": 10}, {}),  # all of a, b <= c and a + b = 18 would say that both are 9
    ],
)
def test_suppression_by_example(cells: dict[str, int], told: dict[str, int]) -> None:
    assert wire.suppress(cells, 10) == told


def test_counts_that_leave_are_read_back() -> None:
    tables = {"sex": {"F": 30, "M": 60}, "label:edema": {"present": 11, "absent": 40, "unknown": 100}}
    told = wire.counts_from_json(wire.counts_to_json(tables, 10))
    assert told == {"sex": {"M": 60}, "label:edema": tables["label:edema"]}


@pytest.mark.parametrize(
    "tables",
    [
        {"sex": {"F": 30, "DOE^JANE": 30}},
        {"patients": {"F": 30}},
        {"label:DOE^JANE": {"present": 30}},
        {"edema": {"present": 30}},
    ],
)
def test_words_of_a_site_own_do_not_leave(tables: dict[str, dict[str, int]]) -> None:
    with pytest.raises(WireError, match="not on the list"):
        wire.counts_to_json(tables, 10)


@pytest.mark.parametrize(
    "text",
    [
        *("", "nonsense", "[]", "3", "null", '"sex"', '{"sex": 3}', '{"sex": [["F"]]}', '{"sex": [{}]}'),
        *(
            '{"sex": "F"}',
            '{"sex": null}',
            '{"DOE^JANE": {}}',
            '{"sex": {"DOE^JANE": 1}}',
            '{"sex": {"F": -1}}',
        ),
        *('{"sex": {"F": 1.5}}', '{"sex": {"F": true}}', '{"sex": {"F": NaN}}', '{"sex": {"F": "9"}}'),
        '{"sex": {"F": 1' + "0" * 5000 + "}}",  # more digits than Python turns into a number
        '{"sex": {"F": 1' + "0" * 300 + "}}",
        "[" * 15_000,
        '{"sex": {}}' + " " * 20_000,
    ],
    ids=lambda text: text[:24],
)
def test_malformed_counts_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(WireError) as error:
        wire.counts_from_json(text)
    assert "DOE" not in str(error.value)
    assert len(str(error.value)) < 200
