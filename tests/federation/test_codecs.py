"""Codecs: what arrives is what was sent, as far as the codec can; what is malformed is refused."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sscxr import config as configs
from sscxr import seeds
from sscxr.federation import codecs
from sscxr.federation.codecs import CODECS, SCALE, encode_update
from sscxr.federation.wire import WireError
from sscxr.stages.pretrain import build_encoder

Arrays = dict[str, np.ndarray[Any, Any]]

LIKE = {"a.weight": torch.zeros(3, 4), "b.bias": torch.zeros(5)}


def tensors(seed: int = 0, scale: float = 1.0) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {name: torch.randn(like.shape, generator=source) * scale for name, like in LIKE.items()}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def through(sent: dict[str, torch.Tensor], codec: str, seed: int = 0) -> dict[str, torch.Tensor]:
    return codecs.decode(codecs.encode(sent, codec, draws(seed)), codec, sent)


def arrays_in(data: bytes, codec: str, like: dict[str, torch.Tensor]) -> Arrays:
    """The arrays among the bytes, to be written to."""
    return {name: place.of(data).copy() for name, place in codecs.layout(codec, like).items()}


def joined(arrays: Arrays, codec: str, like: dict[str, torch.Tensor]) -> bytes:
    return b"".join(arrays[name].tobytes() for name in codecs.layout(codec, like))


# ---- fp32, fp16


def test_fp32_carries_every_bit() -> None:
    sent = tensors()
    received = through(sent, "fp32")
    assert all(torch.equal(received[name], sent[name]) for name in LIKE)


def test_fp16_carries_the_nearest_half_and_comes_back_as_fp32() -> None:
    sent = tensors()
    received = through(sent, "fp16")
    for name in LIKE:
        assert received[name].dtype == torch.float32
        assert torch.equal(received[name], sent[name].half().float())


def test_what_decode_gives_is_not_the_message_memory() -> None:
    data = bytearray(codecs.encode(tensors(), "fp32"))
    decoded = codecs.decode(bytes(data), "fp32", LIKE)
    given = codecs.decode(data, "fp32", LIKE)  # type: ignore[arg-type]
    data[:] = bytes(len(data))
    assert all(torch.equal(given[name], decoded[name]) for name in LIKE)
    assert decoded["b.bias"].any()


@pytest.mark.parametrize("value", [65504.0, -65504.0])
def test_fp16_holds_its_largest_value(value: float) -> None:
    assert (through({"b.bias": torch.full((5,), value)}, "fp16")["b.bias"] == value).all()


@pytest.mark.parametrize(
    ("codec", "value"), [("fp16", 65536.0), ("fp16", -1e6), ("int8", 1.4e8), ("int8", -3e38)]
)
def test_beyond_the_codec_is_refused_at_the_sender(codec: str, value: float) -> None:
    with pytest.raises(WireError, match=rf"b\.bias has values beyond {codec}'s range .*; use the fp32 codec"):
        codecs.encode({"b.bias": torch.tensor([0.0, value])}, codec, draws())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_at_the_sender(codec: str, value: float) -> None:
    with pytest.raises(WireError, match=r"b\.bias has NaN or infinity"):
        codecs.encode({"b.bias": torch.tensor([0.0, value])}, codec, draws())


def test_unknown_codec_names_the_known_ones() -> None:
    for call in (lambda: codecs.encode(LIKE, "int3"), lambda: codecs.decode(b"", "int3", LIKE)):
        with pytest.raises(WireError, match=r"'int3'.*fp32, fp16, int8"):
            call()


# ---- int8


def scale_of(values: torch.Tensor) -> torch.Tensor:
    """The size of one step, for each value: 1/127 of the largest of its channel."""
    rows = values.reshape(values.shape[0], -1) if values.dim() > 1 else values.reshape(1, -1)
    return (rows.abs().amax(dim=1, keepdim=True) / 127).expand_as(rows).reshape(values.shape)


@pytest.mark.parametrize("shape", [(3, 4), (5,), (4, 1, 3, 3), (1, 7, 2), ()], ids=str)
@pytest.mark.parametrize("size", [1e-20, 1e-4, 1.0, 1e6])
def test_int8_errs_by_less_than_a_step_of_its_channel(shape: tuple[int, ...], size: float) -> None:
    sent = {"t": torch.randn(shape, generator=draws(1)) * size}
    data = codecs.encode(sent, "int8", draws())
    arrays = arrays_in(data, "int8", sent)
    assert (arrays["t"].dtype, arrays["t" + SCALE].dtype) == (np.int8, np.float32)
    assert arrays["t"].shape == shape
    assert arrays["t" + SCALE].shape == (shape[0] if len(shape) > 1 else 1,)
    error = (codecs.decode(data, "int8", sent)["t"] - sent["t"]).abs()
    assert (error <= scale_of(sent["t"]) * (1 + 1e-5)).all()


def test_int8_gives_a_quiet_channel_its_own_scale() -> None:
    sent = torch.randn(2, 64, generator=draws(1)) * torch.tensor([[1.0], [1e-4]])
    received = through({"t": sent}, "int8")["t"]
    assert float((received - sent)[1].norm() / sent[1].norm()) < 0.02


@pytest.mark.slow
def test_int8_rounds_so_that_the_mean_is_what_was_sent() -> None:
    sent = {"t": torch.linspace(-1, 1, 101)}
    source, number = draws(), 4000
    total = sum(
        codecs.decode(codecs.encode(sent, "int8", source), "int8", sent)["t"].double() for _ in range(number)
    )
    # A step is 1/127 and the standard deviation at most half of it: five standard errors of the mean.
    assert float((total / number - sent["t"]).abs().max()) < 5 * 0.5 / 127 / math.sqrt(number)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-44, -1e-38])
def test_int8_of_nothing_or_next_to_nothing_is_nothing(value: float) -> None:
    data, left = encode_update({"t": torch.full((3, 2), value)}, {}, "int8", draws())
    assert not any(data)
    assert (left["t"] == value).all(), "it waits until there is more of it"


def test_int8_leaves_zeros_and_the_largest_values_where_they_are() -> None:
    sent = torch.randn(50, 50, generator=draws(3))
    sent[:, ::2] = 0
    received = through({"t": sent}, "int8")["t"]
    assert not received[:, ::2].any()
    for row, got in zip(sent, received, strict=True):
        at = int(row.abs().argmax())
        assert float(got[at]) == pytest.approx(float(row[at]), rel=1e-6)


def test_int8_depends_on_the_generator_and_on_no_order_of_names() -> None:
    sent = tensors()
    one = codecs.encode(sent, "int8", draws(4))
    same = codecs.encode(dict(reversed(sent.items())), "int8", draws(4))
    other = codecs.encode(sent, "int8", draws(5))
    assert one == same
    assert one != other


def test_int8_without_a_generator_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="give a generator"):
        codecs.encode(tensors(), "int8")


# ---- what rounding left out


def test_what_int8_leaves_out_arrives_later() -> None:
    """After any number of rounds, what arrived and what is carried make up all that was sent."""
    carried: dict[str, torch.Tensor] = {}
    sent, arrived = torch.zeros(3, 4), torch.zeros(3, 4)
    for number in range(50):
        update = tensors(seed=number, scale=1e-3)
        data, carried = encode_update(update, carried, "int8", draws(number))
        sent += update["a.weight"]
        arrived += codecs.decode(data, "int8", LIKE)["a.weight"]
        torch.testing.assert_close(arrived + carried["a.weight"], sent, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rounding", ["worst case", "drawn"])
def test_what_is_carried_stays_below_a_126th_of_the_largest_update(rounding: str) -> None:
    carried: dict[str, torch.Tensor] = {}
    for number in range(200):
        update = {"t": torch.randn(4, 300, generator=draws(number)).clamp(-1, 1)}
        if rounding == "worst case" and carried:
            update["t"] = carried["t"].sign()  # every update pushes on where the last one fell short
        _, carried = encode_update(update, carried, "int8", draws(number))
        assert float(carried["t"].abs().max()) <= 1 / 126 * (1 + 1e-5)


def test_small_values_beside_a_large_one_are_not_lost() -> None:
    """A hundredth of a step each time: most messages send nothing of it, all together send all of it."""
    update = {"t": torch.tensor([1.0] + [0.01 / 127] * 200)}
    carried: dict[str, torch.Tensor] = {}
    arrived = torch.zeros(201, dtype=torch.float64)
    for number in range(300):
        data, carried = encode_update(update, carried, "int8", draws(number))
        arrived += codecs.decode(data, "int8", update)["t"].double()
    torch.testing.assert_close(arrived[1:].mean(), torch.tensor(3 / 127).double(), rtol=0.1, atol=0)


@pytest.mark.parametrize("codec", ["fp32", "fp16"])
def test_other_codecs_carry_nothing(codec: str) -> None:
    data, carried = encode_update(tensors(), {}, codec, draws())
    assert not carried
    assert data == codecs.encode(tensors(), codec)


# ---- what is refused


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: b""])
def test_another_number_of_bytes_is_refused(codec: str, change: Callable[[bytes], bytes]) -> None:
    data = codecs.encode(tensors(), codec, draws())
    with pytest.raises(WireError, match=rf"{len(change(data))} bytes, expected {len(data)}"):
        codecs.decode(change(data), codec, LIKE)


def test_another_codec_is_refused() -> None:
    for sent, expected in itertools.permutations(CODECS, 2):
        with pytest.raises(WireError, match="bytes, expected"):
            codecs.decode(codecs.encode(tensors(), sent, draws()), expected, LIKE)


SCALES = "a.weight" + SCALE
MALFORMED = {
    "NaN": ("fp32", "b.bias", math.nan, "NaN or infinity in b.bias"),
    "Inf": ("fp16", "b.bias", math.inf, "NaN or infinity in b.bias"),
    "-Inf": ("fp32", "a.weight", -math.inf, "NaN or infinity in a.weight"),
    "NaN scale": ("int8", SCALES, math.nan, f"NaN or infinity in {SCALES}"),
    "infinite scale": ("int8", SCALES, math.inf, f"NaN or infinity in {SCALES}"),
    "negative scale": ("int8", SCALES, -1e-30, "scale of a.weight out of range"),
    "scale beyond fp32": ("int8", SCALES, 1e38, "scale of a.weight out of range"),
    "large scale": ("int8", SCALES, 2e6, "scale of a.weight out of range"),
    "-128": ("int8", "a.weight", -128, "values of a.weight out of range"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_value_that_may_not_be_is_refused_with_the_right_word(case: str) -> None:
    codec, name, value, word = MALFORMED[case]
    arrays = arrays_in(codecs.encode(tensors(), codec, draws()), codec, LIKE)
    arrays[name].flat[1] = value
    with pytest.raises(WireError, match=word):
        codecs.decode(joined(arrays, codec, LIKE), codec, LIKE)


@pytest.mark.parametrize("codec", CODECS)
def test_arrays_fill_the_bytes_each_at_a_multiple_of_its_own_size(codec: str) -> None:
    like = {"odd": torch.zeros(3, 1), "one": torch.zeros(()), **LIKE}
    places = codecs.layout(codec, like)
    assert [place.begin for place in places.values()] == [
        0, *(place.end for place in list(places.values())[:-1])
    ]  # fmt: skip
    assert all(place.begin % place.dtype.itemsize == 0 for place in places.values())
    assert codecs.payload_bytes(codec, like) == len(codecs.encode(like, codec, draws()))


def test_the_largest_that_int8_accepts_decodes_to_finite_values() -> None:
    like = {"t": torch.zeros(2, 3)}
    arrays: Arrays = {"t": np.full((2, 3), -127, np.int8), "t" + SCALE: np.full(2, 2.0**20, np.float32)}
    decoded = codecs.decode(joined(arrays, "int8", like), "int8", like)["t"]
    assert (decoded == -127 * 2.0**20).all()


# ---- sizes


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "most"), [("fp32", 86), ("fp16", 43), ("int8", 22)])
def test_a_vit_s_takes_no_more_megabytes_than_promised(codec: str, most: int) -> None:
    """configs/sscxr.yaml: ViT-S/16, one channel, 224 px; 1 MB is 10^6 bytes, scales included."""
    encoder = dict(build_encoder(configs.load("sscxr", [])).state_dict())
    assert (encoder["blocks.11.attn.qkv.weight"].shape, encoder["pos_embed"].shape) == (
        (1152, 384),
        (1, 197, 384),
    )
    source = seeds.generator("cpu", 0, "payload")
    assert len(codecs.encode(encoder, codec, source)) == codecs.payload_bytes(codec, encoder) <= most * 10**6


# ---- faster forms, compared to the plain ones


def test_every_fp16_value_is_as_numpy_converts_it() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    near = np.nextafter(every.astype(np.float32), np.float32(np.inf))  # and what has to be rounded
    between = (every[:-1].astype(np.float32) + every[1:].astype(np.float32)) / 2
    for values in (every.astype(np.float32), near, between):
        values = values[np.abs(values) <= 65504]
        sent = codecs.encode({"a": torch.from_numpy(values)}, "fp16")
        assert sent == values.astype(np.float16).tobytes()
        arrived = codecs.decode(sent, "fp16", {"a": torch.from_numpy(values)})["a"]
        assert arrived.numpy().tobytes() == values.astype(np.float16).astype(np.float32).tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_largest_size_is_that_of_the_plain_form(dtype: torch.dtype) -> None:
    values = torch.randn(1001, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert codecs.size(values) == float(values.abs().max())
    assert codecs.size(-values.abs()) == float(values.abs().max())
    assert codecs.size(values[:0]) == 0
    for bad in (torch.nan, torch.inf, -torch.inf):
        values[777] = bad
        assert not math.isfinite(codecs.size(values))


def test_the_norm_is_that_of_the_plain_form() -> None:
    values = {"a": torch.randn(3, codecs.CHUNK), "b": torch.randn(7), "c": torch.zeros(0)}
    plain = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in values.values()))
    assert codecs.norm(values) == pytest.approx(plain, rel=1e-6)


def test_moments_travel_as_fp16_in_int8s_place() -> None:
    """A small second moment beside a large one is not rounded to zero, which a step would divide by."""
    name = "moment.exp_avg_sq.norm.bias"
    update = {"a": torch.randn(4, 5), name: torch.tensor([1.0, 1e-4, 3e-6]), "z": torch.randn(3)}
    data, residual = codecs.encode_update(update, {}, "int8", torch.Generator().manual_seed(0))
    arrived = codecs.decode(data, "int8", update)
    torch.testing.assert_close(arrived[name], update[name], rtol=1e-2, atol=1e-7)
    assert residual.keys() == {"a", "z"}
    assert len(data) == 20 + 4 * 4 + 2 * 3 + 3 + 4
