"""The wire: what is malformed is refused, and what leaves a site is the list in `federation/wire.py`, no more."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest

from sscxr.federation import wire
from sscxr.federation.wire import WireError

TASK = wire.Task("run", 3, 1, "r00002-a00", "run: {}", "{}", 60.0)
HELLO = wire.Hello("site-1", "{}", 40)
TRAIN = wire.TrainReply("site-1", 3, 1, "{}", 40, 3, 0.5, 1.5, "kept")
EVALUATE = wire.EvaluateReply("site-1", 3, 12, 0.25, 0.75, "{}")
SECURE = wire.SecureReply("site-1", 3, 1, "{}", "kept")
FAILURE = wire.Failure("site-1", "memory")


# ---- messages


@pytest.mark.parametrize(
    "message", [TASK, HELLO, TRAIN, EVALUATE, SECURE, FAILURE], ids=lambda m: type(m).__name__
)
def test_messages_come_back_as_they_were(message: Any) -> None:
    assert wire.from_record(type(message), wire.to_record(message)) == message


def test_what_leaves_a_site_is_this_list() -> None:
    """A field added to a reply is a decision on privacy: change docs/privacy.md with this list."""
    replies = (wire.Hello, wire.TrainReply, wire.EvaluateReply, wire.SecureReply, wire.Failure)
    assert {kind.__name__: [item.name for item in fields(kind)] for kind in replies} == {
        "Hello": ["site", "fingerprint", "images"],
        "TrainReply": [
            *("site", "round", "attempt", "fingerprint", "images", "steps", "loss", "seconds", "state"),
            *("epsilon", "delta"),
        ],
        "EvaluateReply": ["site", "round", "images", "loss", "score", "counts"],
        "SecureReply": ["site", "round", "attempt", "fingerprint", "state"],
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


CELLS = wire.GREY_CELLS
EVEN = dict.fromkeys(CELLS, 1 / len(CELLS))


def test_a_grey_level_of_few_patients_is_not_told() -> None:
    patients = dict.fromkeys(CELLS, 10)
    assert set(wire.suppress_grey(EVEN, patients, 10)) == set(CELLS)
    few = patients | {CELLS[0]: 9, CELLS[15]: 3}
    assert set(wire.suppress_grey(EVEN, few, 10)) == set(CELLS[1:15])
    assert wire.suppress_grey(EVEN, patients, 11) == {}


def test_a_single_dropped_grey_level_takes_the_smallest_other_with_it() -> None:
    """The cells sum to all pixels: one that is missing alone would be the rest."""
    shares = EVEN | {CELLS[7]: 0.001, CELLS[3]: 0.2}
    patients = dict.fromkeys(CELLS, 50) | {CELLS[3]: 2}
    assert set(CELLS) - set(wire.suppress_grey(shares, patients, 10)) == {CELLS[3], CELLS[7]}


def test_grey_levels_are_whole_per_cent_in_the_cells_order() -> None:
    told = wire.suppress_grey(EVEN | {CELLS[2]: 0.126}, dict.fromkeys(CELLS, 10), 10)
    assert list(told) == list(CELLS)
    assert told[CELLS[2]] == 13
    assert all(isinstance(share, int) for share in told.values())
    text = wire.counts_to_json({"sex": {"F": 30, "M": 60}}, 10, told)
    assert wire.counts_from_json(text)["grey"] == told
    assert "grey" not in wire.counts_from_json(wire.counts_to_json({"sex": {}}, 10))


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
