"""JSON records: canonical, exact and without NaN, nested values too."""

from __future__ import annotations

import datetime
import json

import numpy as np
import pyarrow as pa

from stages.shards.rows import records


def test_record_is_sorted_exact_and_free_of_nan() -> None:
    struct = pa.struct([("score", pa.float32()), ("b", pa.string())])
    table = pa.table(
        {
            "z": pa.array([0.3, float("nan"), None], pa.float32()),
            "a": pa.array([1 / 3, float("inf"), -0.0], pa.float64()),
            "h": pa.array(np.array([0.1, 1, 2], np.float16)),
            "raw": pa.array([b"\x00\xff", None, b""], pa.binary()),
            "nest": pa.array([[{"score": 0.7, "b": "ø"}, {"score": float("nan"), "b": None}], None, []], pa.list_(struct)),
            "when": pa.array([datetime.date(2020, 1, 2), None, None]),
        }
    )
    first, second, third = (row.decode() for row in records(table))
    assert first == (
        '{"a":0.3333333333333333,"h":0.099975586,"nest":[{"b":"ø","score":0.7},{"b":null,"score":null}],"raw":"00ff","when":"2020-01-02","z":0.3}'
    )
    assert json.loads(second) == {"a": None, "h": 1.0, "nest": None, "raw": None, "when": None, "z": None}
    assert np.float32(json.loads(first)["z"]) == np.float32(0.3)
    assert json.loads(third)["nest"] == []
