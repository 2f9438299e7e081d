"""Members of a tar as samples: grouped by key as webdataset does, wherever in the tar they stand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from schemas.outcome import FailureCode
from stages.source.tar_reader import Member, Problem

KeyRule = Literal["first_dot", "last_dot"]
HELD_BYTES = 128 << 20  # texts of one tar that are held while members of their samples may still come
_MEMBER_BYTES = 400  # rough cost of a held member beside its text
_META = re.compile(r"__[^/]*__($|/)")


@dataclass(slots=True)
class Sample:
    """Members of one key by extension, in lower case. A sample without members stands for a problem of the tar."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    code: str = ""
    detail: str = ""


def split_key(name: str, rule: KeyRule = "first_dot") -> tuple[str, str] | None:
    """(key, extension) of a member; None for what belongs to no sample: hidden files and webdataset's __notes__.

    first_dot is webdataset's rule: the key is the path up to the first dot of the base name. A name without a dot has
    the extension ''.
    """
    if _META.search(name):
        return None
    folder, slash, base = name.rpartition("/")
    if base.startswith(".") or not base:
        return None
    stem, _, extension = base.partition(".") if rule == "first_dot" else base.rpartition(".") if "." in base else (base, "", "")
    return folder + slash + stem, extension.lower()


def group_members(members: Iterable[Member | Problem], rule: KeyRule = "first_dot", held_bytes: int = HELD_BYTES) -> Iterator[Sample]:
    """Samples of one tar in the order of their first members. Members of a key may stand apart.

    A second member of one key and extension begins a further sample, which fails as a repetition. Where the texts held
    pass `held_bytes`, the older half is given out; a member that comes later than that fails.
    """
    held = _Held(held_bytes)
    for member in members:
        if isinstance(member, Problem):
            held.add_problem(member)
        elif (split := split_key(member.name, rule)) is not None:
            held.add(member, *split)
        if held.bytes > held_bytes:
            yield from held.older_half()
    yield from held.samples.values()


class _Held:
    """The samples of one tar that are not given out yet, by (key, number); problems under numbers below 0."""

    def __init__(self, most: int):
        self.most = most
        self.bytes = 0
        self.samples: dict[tuple[str, int], Sample] = {}
        self.numbers: dict[str, int] = {}  # of the newest sample of a key that repeats
        self.given_out: set[str] = set()
        self.last: Sample | None = None
        self.problems = 0

    def add(self, member: Member, key: str, extension: str) -> None:
        if not extension:
            self._fail(member.name, FailureCode.BAD_ROW, "has no extension, and so belongs to no sample")
            return
        if key in self.given_out:
            detail = f"stands more than {self.most:,} bytes of texts behind the other members of its key: sort the tar by name"
            self._fail(member.name, FailureCode.BAD_ROW, detail)
            return
        number = self.numbers.get(key, 0)
        sample = self.samples.get((key, number))
        if sample is None:
            sample = self.samples[key, number] = Sample(key)
        elif extension in sample.members:
            first = self.samples[key, 0].members.get(extension, sample.members[extension])
            detail = f"the key {key!r} is in the tar already (its .{extension} at byte {first.offset}): the first stands, this one is left out"
            sample = self.samples[key, number + 1] = Sample(key, {}, FailureCode.BAD_ROW, detail)
            self.numbers[key] = number + 1
        sample.members[extension] = member
        if member.problem:
            sample.code, sample.detail = FailureCode.UNREADABLE, member.problem
        self.last = sample
        self.bytes += _MEMBER_BYTES + len(member.data or b"")

    def add_problem(self, problem: Problem) -> None:
        """Where a tar breaks, the sample it was in fails too if it lacks what the one before it has."""
        last = self.last
        if problem.broken and last is not None and not last.code:
            others = [sample for sample in self.samples.values() if sample is not last and sample.members and not sample.code]
            if others and not set(others[-1].members) <= set(last.members):
                last.code, last.detail = problem.code, f"the sample may not be whole: {problem.detail}"
        self._fail(problem.name, problem.code, problem.detail)

    def _fail(self, name: str, code: str, detail: str) -> None:
        self.problems += 1
        self.samples[name, -self.problems] = Sample(name, {}, code, detail)
        self.bytes += _MEMBER_BYTES

    def older_half(self) -> Iterator[Sample]:
        for key, number in list(self.samples)[: (len(self.samples) + 1) // 2]:
            sample = self.samples.pop((key, number))
            if number >= 0:
                self.given_out.add(key)
            yield sample
        held = [member for sample in self.samples.values() for member in sample.members.values()]
        self.bytes = len(self.samples) * _MEMBER_BYTES + sum(_MEMBER_BYTES + len(member.data or b"") for member in held)
