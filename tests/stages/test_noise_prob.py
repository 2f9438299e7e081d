"""noise_prob: the mixture against a loop-written EM in float64, the stage on files and columns."""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import Fatal, RecipeError
from pipeline.stage import Evidence
from schemas.sample import sample_id
from stages.mixture import Mixture, fit_mixture
from stages.noise_prob import NoiseProb, NoiseProbParams
from tests.bench import bench_noise_prob

LEAST_TOY_AUC = 0.75  # 0.838 when it was written; the bar of 0.85 is that of the whole bench


def loop_em(values: list[float], rounds: int) -> tuple[list[float], list[float], list[float], list[float]]:
    """Weights, means, spreads of two components and posteriors of the second, by plain loops from the halves on."""
    n, middle = len(values), sorted(values)
    median = (middle[(n - 1) // 2] + middle[n // 2]) / 2
    posterior = [1.0 if value > median else 0.0 for value in values]
    for nth in range(rounds + 1):
        weights, means, spreads = [], [], []
        for second in (False, True):
            shares = [p if second else 1 - p for p in posterior]
            total = sum(shares)
            mean = sum(s * v for s, v in zip(shares, values, strict=True)) / total
            weights.append(total / n)
            means.append(mean)
            spreads.append(math.sqrt(sum(s * (v - mean) ** 2 for s, v in zip(shares, values, strict=True)) / total))
        if nth < rounds:
            dens = [[w / s * math.exp(-0.5 * ((v - m) / s) ** 2) for w, m, s in zip(weights, means, spreads, strict=True)] for v in values]
            posterior = [high / (low + high) for low, high in dens]
    dens = [[w / s * math.exp(-0.5 * ((v - m) / s) ** 2) for w, m, s in zip(weights, means, spreads, strict=True)] for v in values]
    return weights, means, spreads, [high / (low + high) for low, high in dens]


def drawn(n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Losses of clean (80 %) and noisy pairs, and which are noisy."""
    draw = np.random.default_rng(seed)
    noisy = draw.random(n) < 0.2
    return np.where(noisy, draw.normal(5, 0.8, n), draw.normal(2, 0.5, n)), noisy


def test_the_mixture_is_that_of_loops_round_by_round_and_at_its_end() -> None:
    values, _ = drawn(200)
    for rounds in (1, 3, 60):
        found = fit_mixture(values, rounds, tolerance=-math.inf)
        weights, means, spreads, posterior = loop_em([float(v) for v in values], rounds)
        for mine, theirs in zip((found.weights, found.means, found.spreads), (weights, means, spreads), strict=True):
            assert list(mine) == pytest.approx(theirs, rel=1e-9)
        assert found.posterior(values) == pytest.approx(posterior, abs=1e-9)
    whole = fit_mixture(values)
    assert list(whole.means) == pytest.approx(means, rel=1e-3)


def test_planted_components_are_found_whatever_their_order_and_noisy_rows_stand_above() -> None:
    values, noisy = drawn(20_000)
    found = fit_mixture(values)
    assert found.weights == pytest.approx((0.8, 0.2), abs=0.01) and found.means == pytest.approx((2, 5), abs=0.05)
    assert found.spreads == pytest.approx((0.5, 0.8), abs=0.05)
    posterior = found.rising_posterior(values)
    assert posterior[noisy].mean() > 0.97 and posterior[~noisy].mean() < 0.02
    assert np.all(np.diff(found.rising_posterior(np.sort(values))) >= 0)
    far = np.array([-100.0, 100.0])
    # The wider component wins far below too; the rising posterior does not say so.
    assert found.posterior(far)[0] > 0.99 and found.rising_posterior(far)[0] < 1e-4 and found.rising_posterior(far)[1] > 0.99
    wide_low = Mixture((0.5, 0.5), (0.0, 1.0), (3.0, 0.2))
    assert wide_low.posterior(far)[1] < 0.01 and wide_low.rising_posterior(far)[1] > 0.8
    assert np.all(np.diff(wide_low.rising_posterior(np.linspace(-9, 9, 500))) >= 0)


def test_a_mixture_of_equal_or_missing_values_is_refused() -> None:
    for values in ([], [1.0], [2.0, 2.0, 2.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match="two different numbers"):
            fit_mixture(np.array(values))
    assert fit_mixture(np.array([0.0] * 9 + [1.0])).means == pytest.approx((0, 1), abs=1e-6)


def evidence_of(losses: list[float | None], per_part: int, name: str | None = "loss") -> Evidence:
    places = np.arange(len(losses))
    ids = pa.array([sample_id("t", str(at), "") for at in range(len(losses))], pa.binary())
    con = duckdb.connect()
    columns: dict[str, Any] = {name: pa.array(losses, pa.float64())} if name else {}
    con.register("incoming", pa.table({"part": places // per_part, "row": places % per_part, "sample_id": ids, **columns}))
    con.execute('CREATE TABLE rows AS SELECT * REPLACE (part::INTEGER AS part, "row"::INTEGER AS "row") FROM incoming')
    return Evidence(con, len(losses), len(losses))


def resolved(stage: NoiseProb, evidence: Evidence, per_part: int) -> dict[int, tuple[float, float]]:
    table = stage.resolve(evidence).to_arrow_table()
    assert table.column_names == ["part", "row", *stage.resolves] and [table[name].type for name in stage.resolves] == list(stage.resolves.values())
    return {one["part"] * per_part + one["row"]: (one["noise_prob"], one["pair_loss"]) for one in table.to_pylist()}


def test_losses_come_from_a_column_or_from_the_trainers_files_and_rows_without_one_have_none(tmp_path: Path) -> None:
    values, _ = drawn()
    losses: list[float | None] = [float(value) for value in values]
    losses[3], losses[4] = None, math.nan
    evidence = evidence_of(losses, 70)
    found = resolved(NoiseProb(NoiseProbParams(column="loss")), evidence, 70)
    good = np.array([at for at in range(len(values)) if at not in (3, 4)])
    assert sorted(found) == good.tolist()
    mixture = fit_mixture(values[good])
    assert [found[at][0] for at in good] == pytest.approx(mixture.rising_posterior(values[good]), abs=1e-5)
    assert evidence.facts["noise_prob"]["means"] == pytest.approx(mixture.means)
    assert resolved(NoiseProb(NoiseProbParams(column="loss")), evidence_of(losses, 600), 600) == found
    keys = [sample_id("t", str(at), "").hex() for at in good]
    folder = tmp_path / "losses"
    folder.mkdir()
    for nth, some in enumerate((slice(None, None, 2), slice(1, None, 2))):
        table = pa.table({"key": keys[some], "loss": pa.array(values[good][some], pa.float64())})
        pq.write_table(table, folder / f"part-{nth:05d}.parquet")
    for path in (folder, tmp_path):
        assert resolved(NoiseProb(NoiseProbParams(losses=str(path))), evidence_of(losses, 70, None), 70) == found
    before = NoiseProbParams(losses=str(folder)).losses_sha256
    pq.write_table(table.slice(0, 5), folder / "part-00001.parquet")
    assert NoiseProbParams(losses=str(folder)).losses_sha256 != before


def test_losses_of_another_dataset_and_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="record_losses: true"):
        NoiseProbParams(losses=str(tmp_path))
    with pytest.raises(ValueError, match="either `losses` or `column`"):
        NoiseProbParams()
    pq.write_table(pa.table({"key": ["ab"], "loss": [1.0]}), tmp_path / "some.parquet")
    with pytest.raises(Fatal, match="were the losses recorded on another dataset"):
        resolved(NoiseProb(NoiseProbParams(losses=str(tmp_path / "some.parquet"))), evidence_of([1.0, 2.0], 2), 2)
    with pytest.raises(Fatal, match="two different numbers"):
        resolved(NoiseProb(NoiseProbParams(column="loss")), evidence_of([1.0, 1.0], 2), 2)
    assert resolved(NoiseProb(NoiseProbParams(column="loss")), evidence_of([None, None], 2), 2) == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nevlp_acceptance_swapped_texts_stand_above_true_ones_after_a_toy_warm_up(tmp_path: Path) -> None:
    """A fifth of the texts is swapped; the whole chain: rendered scenes, a short training, its recorded losses, the stage."""
    options = Namespace(scenes=1500, steps=120, batch=64, share=0.2)
    found = bench_noise_prob.measure(tmp_path, options)
    assert found["swapped"] == 300 and found["mean_of_swapped"] > found["mean_of_others"] and found["auc"] >= LEAST_TOY_AUC, found
