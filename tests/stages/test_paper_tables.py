"""Acceptance of FILIP's and Wukong's filters: a labelled table of rows and images, and exactly the intended rows leave, each for its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run

Labelled = tuple[str, tuple[int, int], str | None]  # text, size of its image, reason for which it must leave

SUBJECTS = ("dog", "cat", "boat", "bridge", "train", "horse", "child", "woman", "bird", "house")
PLACES = ("near the old harbour", "on a sunny beach", "in front of the church", "under a grey sky", "beside the river", "at the market", "in the deep snow")

FOREIGN = (
    "ein kleines Haus steht am Ufer des Sees neben dem Wald", "un petit chien court le long de la plage avec son maître",
    "la casa blanca está junto al río y al puente",
)  # fmt: skip


def english(number: int) -> str:
    return f"a photograph of the {SUBJECTS[number % 10]} {PLACES[number // 10 % 7]}, taken in {1940 + number}"


def outcomes(folder: Path, table: list[Labelled], preset: str, web: Any, jpeg: Callable[..., bytes], **rules: Any) -> tuple[list[str | None], list[str]]:
    """Reason of each row (None where kept) under the preset of all three filter stages, and the texts as they are published."""
    for size in {size for _, size, _ in table}:
        web.answers.update({f"/{at}.jpg": web.http(jpeg(*size)) for at, (_, own, _) in enumerate(table) if own == size})
    urls = [web.url(f"/{at}.jpg") for at in range(len(table))]
    pq.write_table(pa.table({"url": urls, "alt_text": [text for text, _, _ in table]}), folder / "rows.parquet")
    stages = [
        {"repeated_text": {"preset": preset}},
        {"text_rules": {"preset": preset, **rules}},
        {"download": {"preset": preset, "allow_private": True, "per_host": 16}},
    ]
    source = {"kind": "url_table", "table": str(folder / "rows.parquet"), "rows_per_part": 64}
    result = run(build_recipe({"input": source, "stages": stages}), folder / "run", RunOptions(executor="local"))
    reasons: list[str | None] = []
    texts: list[str] = []
    for part in range(len(result.view.parts)):
        view = result.view.view(part)
        reasons += result.view.final(view)["reason"].to_pylist()
        texts += result.view.read(view, ["text_rules.text"])["text_rules.text"].to_pylist()
    return reasons, texts


def test_filip_drops_exactly_the_intended_rows_of_200(tmp_path: Path, web: Any, jpeg: Callable[..., bytes]) -> None:
    table: list[Labelled] = []
    table += [("the same sentence about a garden in spring", (240, 240), "repeated_text")] * 11
    table += [("another sentence about a garden in autumn", (240, 240), None)] * 10
    table += [(f"DSC_{number:04d}.JPG", (240, 240), "file_name") for number in range(12)]
    table += [(f"{FOREIGN[number % 3]} {number}", (240, 240), "language") for number in range(12)]
    table += [(english(number), (199, 240), "too_small") for number in range(6)] + [(english(6 + number), (240, 199), "too_small") for number in range(6)]
    table += [(english(12 + number), (200, 200), None) for number in range(6)]
    table += [(english(18 + number), (603, 200), "aspect") for number in range(6)] + [(english(24 + number), (200, 603), "aspect") for number in range(6)]
    table += [(english(30 + number), (600, 200), None) for number in range(6)] + [(english(36 + number), (200, 600), None) for number in range(6)]
    table += [(english(number), (240, 240), None) for number in range(42, 42 + 200 - len(table))]
    assert len(table) == 200
    reasons, _ = outcomes(tmp_path, table, "filip", web, jpeg)
    wrong = [(at, row, reason) for at, (row, reason) in enumerate(zip(table, reasons, strict=True)) if row[2] != reason]
    assert not wrong


def test_wukong_gives_each_row_its_verdict_and_masks_the_name(tmp_path: Path, web: Any, jpeg: Callable[..., bytes]) -> None:
    table: list[Labelled] = [
        ("公园里的一只小狗", (200, 240), None),
        ("公园里的两只小狗", (199, 240), "too_small"),
        ("公园里的三只小狗", (240, 199), "too_small"),
        ("湖边的一座白色房子", (600, 200), None),
        ("湖边的两座白色房子", (602, 200), "aspect"),
        ("湖边的三座白色房子", (200, 602), "aspect"),
        ("红" * 31, (240, 240), None),
        ("红" * 32, (240, 240), "too_long"),
        ("000.jpg", (240, 240), "file_name"),
        ("a dog in the park", (240, 240), "language"),
        ("王小明在公园里骑自行车", (240, 240), None),
        *[("淘宝网热卖新款连衣裙", (240, 240), "repeated_text")] * 11,
        *[("秋天的山路和红色的树叶", (240, 240), None)] * 10,
    ]
    reasons, texts = outcomes(tmp_path, table, "wukong", web, jpeg, names=["王小明"])
    assert reasons == [reason for _, _, reason in table]
    assert texts[10] == "<人名>在公园里骑自行车"
