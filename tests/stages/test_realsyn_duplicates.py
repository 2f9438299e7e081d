"""RealSyn (arXiv 2502.12513, section 3.1) on 200 pictures: each planted bad one goes by its own rule, and of each component of duplicates one stays."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
from stages.demo.image_bytes import encode
from stages.demo.scenes import draw_scene, render

COSINE = 0.93  # of the bundled CLIP, which knows the rendered world alone


def edited(pixels: np.ndarray, kind: str) -> bytes:
    """A copy as bytes: the same, encoded anew and smaller, or cropped by a tenth (beyond both hashes)."""
    if kind == "exact_dup":
        return encode(pixels, "png")
    if kind == "near_dup":
        return encode(cv2.resize(pixels, (120, 120), interpolation=cv2.INTER_AREA), "jpg", 80)
    return encode(pixels[6:122, 6:122], "jpg", 95)


def corpus(folder: Path) -> dict[str, str | None]:
    """Writes 200 pictures; name -> the reason why it must go, None where it must stay."""
    folder.mkdir()
    wanted: dict[str, str | None] = {}

    def add(name: str, data: bytes, reason: str | None) -> None:
        (folder / f"{name}.png").write_bytes(data)
        (folder / f"{name}.txt").write_text("a scene")
        wanted[f"{name}.png"] = reason

    for number in range(128):
        add(f"scene{number:03}-own", encode(render(draw_scene(5_000_000 + number)), "png"), None)
    for number in range(48):  # the first scenes have copies: 16 of each kind, and three more of one kind, so that components have two to five rows
        kind = ("exact_dup", "near_dup", "semantic_dup")[number % 3]
        add(f"scene{number:03}-{kind}", edited(render(draw_scene(5_000_000 + number)), kind), kind)
    for number in range(3):
        for kind in ("exact_dup", "near_dup", "semantic_dup"):
            if f"scene{number:03}-{kind}.png" not in wanted:
                add(f"scene{number:03}-{kind}", edited(render(draw_scene(5_000_000 + number)), kind), kind)
    for number in range(9):
        add(f"small{number}", encode(render(draw_scene(6_000_000 + number))[:99], "png"), "too_small")
        add(f"wide{number}", encode(cv2.resize(render(draw_scene(7_000_000 + number)), (331, 110)), "png"), "aspect")
    return wanted


def test_every_planted_picture_goes_by_its_own_rule_and_of_each_component_one_stays(tmp_path: Path) -> None:
    wanted = corpus(tmp_path / "images")
    assert len(wanted) == 200
    recipe = {
        "name": "realsyn", "input": {"kind": "image_folder", "folder": str(tmp_path / "images"), "rows_per_part": 70},
        "models": {"clip": {"kind": "open_clip", "weights": "bundled:rendered_clip", "device": "cpu"}},
        "stages": [
            {"read_images": {"min_short_side": 100, "max_aspect": 3}},
            {"image_hash": {"pdq": False, "trimmed": True}},
            {"clip_score": {"min": None}},
            {"near_dup": {"by": "phash"}}, {"semantic_dup": {"search_cosine": COSINE}},
            {"dedup": {"max_distance": 2, "min_cosine": COSINE, "semantic_bits": 22}},
        ],
    }  # fmt: skip
    result = run(build_recipe(recipe), tmp_path / "run", RunOptions(executor="local", jobs=False))
    found, members = {}, Counter()
    for part in range(len(result.view.parts)):
        view = result.view.view(part)
        for row, reason in zip(result.view.read(view, ["path", "dup_component"]).to_pylist(), result.view.final(view)["reason"].to_pylist(), strict=True):
            found[row["path"]] = reason
            if row["dup_component"] and reason is None:
                members[row["dup_component"]] += 1
    # Of two files with equal bytes either may stay: reasons are compared per picture.
    assert per_picture(found) == per_picture(wanted)
    assert len(members) == 48 and set(members.values()) == {1}


def per_picture(reasons: dict[str, str | None]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(name.partition("-")[0], []).append(reason or "stays")
    return {name: sorted(some) for name, some in groups.items()}
