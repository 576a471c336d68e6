"""Rules over hashes, without files, for patient groups, their order, and which are set aside.

They do not depend on the order of the files of a run. A group's place is drawn from the images it had when it was
first seen, and stays: the same files prepared over several runs may be set aside differently than in one run.
"""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from scipy.cluster.hierarchy import DisjointSet


class Member(NamedTuple):
    """An image's patient group: its salted hash, and its place in 0..1."""

    group: str
    split: str


def place(name: str) -> str:
    """Return a uniform place in 0..1 for a name, as text with eight decimals.

    Args:
        name: a salted hash of an image's pixels, so that the image alone does not reveal its place. For a public
            corpus, the public name of its patient, which has the same place at every site and under every salt.
    """
    drawn = int(hashlib.sha256(f"split:{name}".encode()).hexdigest()[:12], 16)
    return f"{drawn / 16**12:.8f}"


def tested(split: str) -> str:
    """Return a place below any share that is set aside: the place minus 1."""
    return split if split.startswith("-") else f"{float(split) - 1:.8f}"


def assign(
    old: Sequence[tuple[str, Member]],
    new: Sequence[tuple[str, str]],
    links: Iterable[tuple[str, str]],
    to_test: Iterable[str] = (),
) -> dict[str, Member]:
    """Assign a patient group to every image.

    Args:
        old: images already in the cache, in its order, with their groups.
        new: new images, each with the name that its place is drawn from: its salted hash, or a public name of its
            patient.
        links: pairs of an image's hash and a patient's, at least one for every new image; images with a patient in
            common are one group.
        to_test: images that were published as test images; their whole groups are set aside.

    Returns:
        The group by image. A known group keeps its name and place; if new images join two groups, the result
        takes the name of the earlier and the smaller place, so that images that were set aside stay so.
    """
    grouped = [(f"image {image}", f"group {member.group}") for image, member in old]
    linked = [(f"image {image}", f"patient {patient}") for image, patient in links]
    sets = DisjointSet(chain.from_iterable(grouped + linked))
    for one, other in grouped + linked:
        sets.merge(one, other)
    names: dict[str, str] = {}
    for _, node in linked:
        root, patient = sets[node], node.removeprefix("patient ")
        names[root] = min(names.get(root, patient), patient)
    found: dict[str, Member] = {}
    for image, member in old:
        root = sets[f"image {image}"]
        known = found.get(root)
        found[root] = member if known is None else Member(known.group, min(known.split, member.split))
    smallest: dict[str, str] = {}
    for image, digest in new:
        root = sets[f"image {image}"]
        smallest[root] = min(smallest.get(root, digest), digest)
    for root, digest in smallest.items():
        found.setdefault(root, Member(names[root], place(digest)))
    for root in {sets[f"image {image}"] for image in to_test}:
        found[root] = found[root]._replace(split=tested(found[root].split))
    return {image: found[sets[f"image {image}"]] for image, _ in (*old, *new)}
