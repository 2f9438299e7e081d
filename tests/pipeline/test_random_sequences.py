"""Random sequences of what users do to a run, each against a fresh run of the recipe it ends with.

Equal `dataset/` bytes, and the calls counted per row equal to the need: an oracle keeps, per stage, the rows that hold a
value, and says before each step which rows must be computed.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline import registry
from pipeline.recipe import Recipe
from pipeline.run import RunOptions, run
from pipeline.store import VALUES
from schemas.outcome import Outcome
from tests.pipeline.helpers import calls, make_recipe

TOYS = Path(__file__).with_name("toys.py")
ROWS, PER_PART = 120, 40
# PAIRMILL_SEQUENCES=200 runs two hundred of them, PAIRMILL_FIRST_SEQUENCE=100 begins at seed 100.
FIRST = int(os.environ.get("PAIRMILL_FIRST_SEQUENCE", "0"))
SEQUENCES = int(os.environ.get("PAIRMILL_SEQUENCES", "15"))


@dataclass
class State:
    """What the user has in hand: the recipe's settings and the world's answers."""

    folder: Path
    score_min: int = 100
    max_bytes: int = 800
    last_min: int = 100
    extra: bool = False
    failing: dict[str, str] = field(default_factory=dict)
    version: int = 0

    @property
    def book(self) -> Path:
        return self.folder / "book.json"

    def recipe(self, log: Path | None) -> Recipe:
        self.book.write_text(json.dumps({"failing": self.failing, "version": self.version}))
        counted = {"calls": str(log) if log else None}
        stages: list = [
            {"score": {"min": self.score_min, **counted}},
            {"fetch": {"book": str(self.book), "max_bytes": self.max_bytes, **counted}},
            {"first_url": {}},
            {"score2": {"use": "score", "factor": 5, "min": self.last_min, **counted}},
        ]
        if self.extra:
            stages.insert(2, {"score3": {"use": "score", "factor": 9, "min": 50, **counted}})
        jobs = [{"write_shards": {"max_samples": 20, "parts_per_group": 2}}]
        return make_recipe(stages, rows=ROWS, rows_per_part=PER_PART, jobs=jobs)


def tree_digest(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def held_values(root: Path, recipe: Recipe) -> dict[str, set[str]]:
    """Per stage, ids of the rows that hold a value or failure on disk (made under the recipe's fingerprint)."""
    from pipeline.chain import Chain
    from pipeline.store import Store

    chain, store = Chain(recipe), Store(root)
    held: dict[str, set[str]] = {}
    for node in chain.nodes[1:]:
        held[node.name] = set()
        for part in range(ROWS // PER_PART):
            record = store.record(VALUES, node.name, part)
            if record is None or record.fingerprint != node.compute_fingerprint:
                continue
            ids = store.read(VALUES, "source", part, ["sample_id"])["sample_id"].to_pylist()
            outcome = store.read(VALUES, node.name, part, ["outcome"])["outcome"].to_pylist()
            held[node.name] |= {i.hex() for i, o in zip(ids, outcome, strict=True) if o != Outcome.ABSENT}
    return held


def reaching(result, name: str) -> set[str]:
    """Ids of the rows that reached a stage in a finished run."""
    chain = result.view.chain
    node = chain.node(name)
    found: set[str] = set()
    for part in range(len(result.view.parts)):
        view = result.view.view(part)
        ids = view.column(chain.find_column("sample_id")).to_pylist()
        found |= {i.hex() for i, alive in zip(ids, view.before(node).alive, strict=True) if alive}
    return found


def failed_with(root: Path, stage: str, code: str) -> set[str]:
    from pipeline.store import Store

    store = Store(root)
    found: set[str] = set()
    for part in range(ROWS // PER_PART):
        table = store.read(VALUES, stage, part, ["failure"])
        if table is not None:
            ids = store.read(VALUES, "source", part, ["sample_id"])["sample_id"].to_pylist()
            found |= {i.hex() for i, f in zip(ids, table["failure"].to_pylist(), strict=True) if f == code}
    return found


def _child(state: State, log: Path, retry: dict[str, frozenset[str]]) -> None:
    registry.import_file(str(TOYS))
    run(state.recipe(log), state.folder / "run", RunOptions(executor="local", retry=retry))


def killed_run(state: State, log: Path, retry: dict[str, frozenset[str]], after: float) -> None:
    """Run in a child that is SIGKILLed after a while (or ends before)."""
    child = multiprocessing.get_context("forkserver").Process(target=_child, args=(state, log, retry))
    child.start()
    assert child.pid is not None
    limit = time.time() + 60
    while not (state.folder / "run" / "lock").exists() and child.is_alive() and time.time() < limit:
        time.sleep(0.002)
    time.sleep(after)
    try:
        os.kill(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.join()


def change(state: State, rng: random.Random) -> dict[str, frozenset[str]]:
    """One random change of the recipe or the world; returns what to retry."""
    move = rng.choice(["tighten", "loosen", "retry", "insert", "drop", "tighten_first", "loosen_last"])
    if move == "tighten":
        state.max_bytes = max(50, state.max_bytes - rng.choice([50, 200]))
    elif move == "loosen":
        state.score_min = max(0, state.score_min - rng.choice([50, 200]))
        state.max_bytes += rng.choice([0, 300])
    elif move == "tighten_first":
        state.score_min = min(600, state.score_min + rng.choice([50, 300]))
    elif move == "loosen_last":
        state.last_min = rng.choice([0, 50, 300, 500])
    elif move == "insert":
        state.extra = True
    elif move == "drop":
        state.extra = False
    else:
        code = rng.choice(["timeout", "http_5xx"])
        state.failing = {text: c for text, c in state.failing.items() if c != code or rng.random() < 0.3}
        return {"fetch": frozenset({code})}
    return {}


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEQUENCES))
def test_a_random_sequence_ends_like_a_fresh_run(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    log = tmp_path / "calls"
    state = State(tmp_path, failing={f"text {i}": rng.choice(["timeout", "http_5xx", "http_4xx"]) for i in rng.sample(range(ROWS), 25)})
    result = run(state.recipe(log), tmp_path / "run", RunOptions(executor="local"))
    calls(log)
    for _ in range(5):
        retry = change(state, rng)
        recipe = state.recipe(log)
        held = held_values(tmp_path / "run", recipe)
        for stage, codes in retry.items():
            for code in codes:
                held[stage] -= failed_with(tmp_path / "run", stage, code)
        interrupted = rng.random() < 0.4
        if interrupted:
            killed_run(state, log, retry, rng.choice([0.0, 0.01, 0.03, 0.1]))
            before = calls(log)
            committed = held_values(tmp_path / "run", recipe)
            still_failing = {(stage, i) for stage, codes in retry.items() for code in codes for i in failed_with(tmp_path / "run", stage, code)}
        result = run(recipe, tmp_path / "run", RunOptions(executor="local", retry=retry))
        counted = calls(log)
        for node in result.view.chain.nodes[1:]:
            if not node.has_compute:
                continue
            need = reaching(result, node.name) - held[node.name]
            computed = Counter({line.split()[1]: n for line, n in counted.items() if line.split()[0] == node.name})
            if interrupted:
                # A kill may cost what was not committed, and a retried row that failed again is asked once more.
                again = {i for i in computed if i in committed[node.name] and (node.name, i) not in still_failing}
                assert not (again - need), f"{node.name}: rows whose value was valid were computed"
                done_twice = {i for i in again if f"{node.name} {i}" in before}
                assert not done_twice, f"{node.name}: committed rows were computed twice"
                assert need <= set(computed) | committed[node.name]
            else:
                assert set(computed) == need
                assert set(computed.values()) <= {1}
    # The fresh run asks a world in which every row answers as it last did for the run above.
    fresh = State(tmp_path / "fresh", state.score_min, state.max_bytes, state.last_min, state.extra, state.failing, state.version)
    fresh.folder.mkdir()
    fresh.failing = {**state.failing, **last_answers(tmp_path / "run", result)}
    run(fresh.recipe(None), fresh.folder / "run", RunOptions(executor="local"))
    assert tree_digest(tmp_path / "run" / "dataset") == tree_digest(fresh.folder / "run" / "dataset")


def last_answers(root: Path, result) -> dict[str, str]:
    """text -> failure code the run holds (a failure is final until a retry asks, whatever the world says by now)."""
    answers: dict[str, str] = {}
    chain = result.view.chain
    node = chain.node("fetch")
    for part in range(len(result.view.parts)):
        view = result.view.view(part)
        texts = view.column(chain.find_column("alt_text")).to_pylist()
        table = result.view.store.read(VALUES, "fetch", part, ["failure", "outcome"])
        alive = view.before(node).alive
        for text, code, reached in zip(texts, table["failure"].to_pylist(), alive, strict=True):
            if code and reached:
                answers[text] = code
    return answers
