"""noise_prob: the probability that a text does not belong to its image, from how hard the pair was to learn (NEVLP, Tao et al. 2024, as NLIP, AAAI 2023).

A model learns pairs that fit before it learns by heart those that do not. After a short training the losses of all pairs are a mixture of two
distributions; a pair's noise probability is the posterior of the one with the higher mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import model_validator

from pipeline import stage as machine
from pipeline.errors import Fatal, RecipeError
from pipeline.reading import known_or
from pipeline.stage import Evidence, Stage, decides
from stages.balancing.draws import row_hash
from stages.balancing.groups import quoted
from stages.file_digests import file_sha256
from stages.mixture import SAMPLE, fit_mixture

if TYPE_CHECKING:
    import duckdb

BATCH = 1_000_000


class NoiseProbParams(machine.Params):
    """Where the losses are: in files, or in a column."""

    losses: str | None = decides(None, "folder that `pretrain` with `record_losses: true` wrote (pretrain/<name>/losses), or a Parquet file of key and loss")
    column: str | None = decides(None, "column of losses (or of any number that is higher for noisy pairs), in place of files")
    losses_sha256: str = decides("", "filled in by itself: digest of the files")

    @model_validator(mode="before")
    @classmethod
    def _digest(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        files = known_or(lambda: loss_files(str(raw["losses"])), []) if raw.get("losses") else []
        digest = "".join(file_sha256(file, "noise_prob.losses")[:8] for file in files)
        return {**raw, "losses_sha256": digest or raw.get("losses_sha256", "")}

    @model_validator(mode="after")
    def _one_of(self) -> NoiseProbParams:
        if (self.losses is None) == (self.column is None):
            raise ValueError("noise_prob needs either `losses` or `column`")
        return self


class NoiseProb(Stage):
    """Gives each row the probability that its text does not belong to its image. Drops nothing: `select` may, by `where: noise_prob < 0.5`.

    `noise_prob` is the posterior of the higher of two normal distributions, fitted on at most 1,000,000 losses drawn by hash of sample_id; it never falls as
    the loss rises. `pair_loss` is the loss. Rows without a loss (that were not trained on) have neither.
    """

    name: ClassVar[str] = "noise_prob"
    version: ClassVar[int] = 1
    Params = NoiseProbParams
    params: NoiseProbParams
    resolves = {"noise_prob": pa.float32(), "pair_loss": pa.float32()}

    @property
    def reads_resolve(self) -> Sequence[str]:  # type: ignore[override]
        return (self.params.column,) if self.params.column else ()

    def check(self, available: Mapping[str, Any]) -> None:
        """Raises RecipeError where the column holds no numbers."""
        if self.params.column:
            machine.check_number(f"stages.{self.instance}.column", self.params.column, available)

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        con = evidence.con
        self._gather(con)
        order = f'{row_hash(f"{evidence.seed}:noise")}, part, "row"'
        drawn = con.sql(f"SELECT loss FROM (SELECT loss FROM noise_losses ORDER BY {order} LIMIT {SAMPLE}) ORDER BY loss").to_arrow_table()["loss"].to_numpy()
        con.execute('CREATE OR REPLACE TABLE noise_found (part INTEGER, "row" INTEGER, noise_prob FLOAT, pair_loss FLOAT)')
        if not len(drawn):
            return con.sql("SELECT * FROM noise_found")
        try:
            mixture = fit_mixture(drawn)
        except ValueError as error:
            raise Fatal(f"{self.instance}: {error}; found {len(drawn)} losses, all {drawn[0]:g}") from error
        evidence.facts["noise_prob"] = {"weights": mixture.weights, "means": mixture.means, "spreads": mixture.spreads, "rows": len(drawn)}
        for batch in con.cursor().sql('SELECT part, "row", loss FROM noise_losses').to_arrow_reader(BATCH):
            losses = batch.column(2).to_numpy()
            posterior = np.round(mixture.rising_posterior(losses), 6).astype(np.float32)
            columns = {"part": batch.column(0), "row": batch.column(1), "noise_prob": posterior, "pair_loss": losses.astype(np.float32)}
            con.register("noise_incoming", pa.table(columns))
            con.execute("INSERT INTO noise_found SELECT * FROM noise_incoming")
            con.unregister("noise_incoming")
        return con.sql("SELECT * FROM noise_found")

    def _gather(self, con: duckdb.DuckDBPyConnection) -> None:
        """Table noise_losses: part, row, sample_id, loss (finite), of the rows that have one. A key that was recorded more than once has its mean loss."""
        if self.params.column:
            loss = f"CAST({quoted(self.params.column)} AS DOUBLE)"
            con.execute(f'CREATE OR REPLACE TABLE noise_losses AS SELECT part, "row", sample_id, {loss} AS loss FROM rows WHERE isfinite({loss})')
            return
        con.execute("CREATE OR REPLACE TABLE noise_read (key VARCHAR, loss DOUBLE)")
        for file in loss_files(str(self.params.losses)):
            try:
                with fsspec.open(file, "rb") as opened:
                    for batch in pq.ParquetFile(opened).iter_batches(BATCH, columns=["key", "loss"]):
                        con.register("noise_incoming", pa.Table.from_batches([batch]))
                        con.execute("INSERT INTO noise_read SELECT key, loss FROM noise_incoming WHERE isfinite(loss)")
                        con.unregister("noise_incoming")
            except (OSError, pa.ArrowException) as error:
                raise Fatal(f"{self.instance}: cannot read the losses {file}: {error}; it must be Parquet with the columns key and loss") from error
        con.execute(
            """
            CREATE OR REPLACE TABLE noise_losses AS SELECT r.part, r."row", r.sample_id, f.loss FROM rows r
            JOIN (SELECT lower(key) AS name, list_avg(list(loss ORDER BY loss)) AS loss FROM noise_read GROUP BY name) f ON f.name = lower(hex(r.sample_id))
            """
        )
        if not con.execute("SELECT count(*) FROM noise_losses").fetchall()[0][0] and con.execute("SELECT count(*) FROM rows").fetchall()[0][0]:
            raise Fatal(f"{self.instance}: no key of {self.params.losses} is the sample_id of a row here; were the losses recorded on another dataset?")


def loss_files(path: str) -> list[str]:
    """The Parquet files of a training's losses: those in a folder or in its folder `losses`, or the file itself. Raises RecipeError where there is none."""
    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
        if filesystem.isfile(inner):
            return [path]
        found = sorted(filesystem.glob(f"{inner.rstrip('/')}/part-*.parquet")) or sorted(filesystem.glob(f"{inner.rstrip('/')}/losses/part-*.parquet"))
    except (OSError, ValueError, ImportError) as error:
        raise RecipeError(f"noise_prob.losses: cannot read {path}: {error}") from error
    if not found:
        raise RecipeError(f"noise_prob.losses: {path} has no losses; run the job `pretrain` with `record_losses: true`, and name its folder")
    return [filesystem.unstrip_protocol(file) for file in found]
