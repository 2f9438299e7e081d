from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from PIL import Image

from stages.demo import faults
from stages.demo.captions import caption_for
from stages.demo.faults import FAULTS, fault_counts
from stages.demo.scenes import draw_scene, render
from stages.demo.serving import Behaviour
from stages.demo.spoiled_texts import mismatch_donor
from stages.demo.streams import STREAM_LENGTH, STREAMS
from stages.demo.world import World, build_world, load_world, make_heldout_dataset

ROWS = 600


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"), rows=ROWS, seed=3, size=64)


@pytest.fixture(scope="module")
def rows(world: World) -> list[dict]:
    """Truth and table side by side, with the behaviour that a client reaches in the end."""
    routes = json.loads(world.routes.read_text())
    truth, urls = pq.read_table(world.truth).to_pylist(), pq.read_table(world.urls).to_pylist()
    assert len(truth) == len(urls) == ROWS
    return [{**t, **u, "served": final_behaviour(routes, t["path"])} for t, u in zip(truth, urls, strict=True)]


def final_behaviour(routes: dict[str, Behaviour], path: str) -> Behaviour | None:
    behaviour = routes.get(path)
    while behaviour and behaviour["kind"] in ("redirect", "slow"):
        behaviour = routes[behaviour["to"]] if behaviour["kind"] == "redirect" else behaviour["then"]
    return behaviour


def with_fault(rows: list[dict], *names: str) -> list[dict]:
    found = [row for row in rows if row["fault"] in names]
    assert found, names
    return found


def decodes(data: bytes, is_jpeg: bool) -> bool:
    try:
        Image.open(io.BytesIO(data)).load()
        if is_jpeg:
            simplejpeg.decode_jpeg(data)
    except (OSError, ValueError, SyntaxError):
        return False
    return True


def test_shares_of_faults_in_the_demo_s_3000_rows() -> None:
    counts = fault_counts(3000)
    assert sum(counts.values()) == 3000
    assert 0.25 <= counts["mismatch"] / 3000 <= 0.35
    for group in ({"boilerplate"}, {"other_language"}, faults.DUPLICATES, faults.DAMAGED, faults.DEAD_LINKS):
        assert 0.05 <= sum(counts[name] for name in group) / 3000 <= 0.10, group
    assert 0.35 <= counts["clean"] / 3000 <= 0.42
    assert 0 < counts["slow_timeout"] / 3000 <= 0.003
    assert counts["repeated_text"] > 10
    assert len(FAULTS) >= 12 and all(counts[name] > 0 for name in FAULTS)


def test_a_world_too_small_for_its_faults_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows 50 cannot hold every fault"):
        build_world(tmp_path, rows=50)
    with pytest.raises(ValueError, match="seed -1"):
        build_world(tmp_path, rows=200, seed=-1)
    with pytest.raises(ValueError, match="base_url"):
        build_world(tmp_path, rows=200, base_url="http://127.0.0.1:1/")


def test_counts_and_reasons_of_the_truth(world: World, rows: list[dict]) -> None:
    assert Counter(row["fault"] for row in rows) == Counter(world.counts) == Counter(fault_counts(ROWS))
    for row in rows:
        assert row["expected_reason"] == ("" if row["fault"] == "clean" else FAULTS[row["fault"]].reason)
        assert row["scene_seed"] // STREAM_LENGTH == STREAMS["web"]
    assert [row["row"] for row in rows] == list(range(ROWS))
    assert len({row["uid"] for row in rows}) == ROWS
    assert all(0.1 < row["similarity"] < 0.5 for row in rows)


def test_two_builds_are_byte_identical_and_another_seed_is_not(world: World, tmp_path: Path) -> None:
    def digests(built: World) -> dict[str, str]:
        files = [path for path in sorted(built.folder.rglob("*")) if path.is_file()]
        return {str(p.relative_to(built.folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    again = build_world(tmp_path / "again", rows=ROWS, seed=3, size=64)
    assert digests(again) == digests(world)
    other = build_world(tmp_path / "other", rows=200, seed=4, size=64)
    seeds = set(pq.read_table(other.truth)["scene_seed"].to_pylist())
    assert seeds.isdisjoint(pq.read_table(world.truth)["scene_seed"].to_pylist())
    build_world(tmp_path / "again", rows=200, seed=4, size=64)
    assert digests(load_world(tmp_path / "again")) == digests(other), "files of an earlier build must be gone"


def test_a_world_remembers_its_settings(world: World, tmp_path: Path) -> None:
    assert load_world(world.folder) == world
    assert world.port == 8642
    with pytest.raises(FileNotFoundError, match=r"world\.json is missing"):
        load_world(tmp_path)


def test_clean_rows_decode_and_damaged_ones_do_not(world: World, rows: list[dict]) -> None:
    formats: Counter[str] = Counter()
    for row in rows:
        served = row["served"]
        if served is None or served["kind"] != "file":
            continue
        data = (world.folder / served["file"]).read_bytes()
        is_jpeg = served["content_type"] == "image/jpeg"
        assert decodes(data, is_jpeg) == (row["fault"] not in faults.UNDECODABLE), row
        if row["fault"] == "clean":
            formats[Image.open(io.BytesIO(data)).format or ""] += 1
    assert set(formats) == {"JPEG", "PNG", "WEBP"}
    for row in with_fault(rows, "truncated", "damaged"):
        start = (world.folder / row["served"]["file"]).read_bytes()[:12]
        assert start[:2] == b"\xff\xd8" or start[:4] == b"\x89PNG" or start[8:] == b"WEBP", "it must look like an image"


def test_valid_images_show_the_row_s_scene(world: World, rows: list[dict]) -> None:
    for row in with_fault(rows, "clean", "mismatch", "exact_dup", "boilerplate")[::5]:
        image = Image.open(world.folder / row["served"]["file"]).convert("RGB")
        expected = render(draw_scene(row["scene_seed"]), 64).astype(int)
        assert np.abs(np.asarray(image).astype(int) - expected).mean() < 12, row


def test_sizes_of_tiny_and_banner_images(world: World, rows: list[dict]) -> None:
    for row in with_fault(rows, "tiny"):
        assert max(Image.open(world.folder / row["served"]["file"]).size) <= 64 // 4
    for row in with_fault(rows, "bad_aspect"):
        width, height = Image.open(world.folder / row["served"]["file"]).size
        assert width / height == 5 and height == 64


def test_copies_follow_a_clean_original_of_their_own(world: World, rows: list[dict]) -> None:
    copies = with_fault(rows, *faults.COPIES)
    assert len({row["original_row"] for row in copies}) == len(copies)
    for copy in copies:
        original = rows[copy["original_row"]]
        assert original["fault"] == "clean" and original["row"] < copy["row"]
        assert original["scene_seed"] == copy["scene_seed"]
        same_url, same_text = copy["url"] == original["url"], copy["alt_text"] == original["alt_text"]
        assert (same_url, same_text) == {
            "duplicate_row": (True, True), "same_url": (True, False), "exact_dup": (False, False),
            "re_encoded": (False, False),
        }[copy["fault"]]  # fmt: skip
        files = [(world.folder / row["served"]["file"]).read_bytes() for row in (copy, original)]
        assert (files[0] == files[1]) == (copy["fault"] != "re_encoded")
    assert all(row["original_row"] == -1 for row in rows if row["fault"] not in faults.COPIES)


def test_urls_are_distinct_but_for_planted_ones(rows: list[dict]) -> None:
    planted = [row for row in rows if row["fault"] in ("duplicate_row", "same_url")]
    others = [row for row in rows if row["fault"] not in ("duplicate_row", "same_url")]
    assert len({row["url"] for row in others}) == len(others)
    assert len({row["url"] for row in rows}) == ROWS - len(planted)


def test_alt_texts_are_true_or_spoiled_as_told(rows: list[dict]) -> None:
    spoiled = {
        "mismatch",
        "boilerplate",
        "other_language",
        "file_name",
        "url_in_text",
        "too_short",
        "empty",
        "one_word",
    }
    spoiled |= {"low_letters", "repetition", "repeated_text"}
    for row in rows:
        scene = draw_scene(row["scene_seed"])
        assert row["true_caption"] == caption_for(scene)
        if row["fault"] not in spoiled | faults.COPIES:
            assert row["alt_text"] == row["true_caption"]
        elif row["fault"] in spoiled:
            assert row["alt_text"] != row["true_caption"]
    assert {row["alt_text"] for row in with_fault(rows, "empty")} == {"", None, "  "}
    assert all(len(row["alt_text"]) < 5 for row in with_fault(rows, "too_short"))
    assert all(len(row["alt_text"]) >= 5 and " " not in row["alt_text"] for row in with_fault(rows, "one_word"))
    for row in with_fault(rows, "low_letters"):
        assert sum(char.isalpha() for char in row["alt_text"]) / len(row["alt_text"]) < 0.25
    for row in with_fault(rows, "repetition"):
        words = row["alt_text"].split()
        assert len(set(words)) <= len(words) / 5
    carried = Counter(row["alt_text"] for row in rows if row["fault"] != "empty")
    assert [count for _, count in carried.most_common(2)] == [len(with_fault(rows, "repeated_text")), 2]


def test_a_mismatched_text_shares_no_object_with_its_image() -> None:
    scene = draw_scene(11)
    donor = mismatch_donor(scene, [scene, *(draw_scene(seed) for seed in range(500, 520))])
    assert donor.background != scene.background
    assert not {(o.color, o.shape) for o in donor.objects} & {(o.color, o.shape) for o in scene.objects}
    with pytest.raises(ValueError, match="none of 1 candidate scenes differs"):
        mismatch_donor(scene, [scene])


def test_dead_links_leave_the_server(world: World, rows: list[dict]) -> None:
    assert all(".invalid/" in row["url"] for row in with_fault(rows, "dead_link_dns"))
    assert all(row["url"].startswith("http://127.0.0.1:1/") for row in with_fault(rows, "dead_link_connect"))
    here = [row for row in rows if row["fault"] not in ("dead_link_dns", "dead_link_connect")]
    assert all(row["url"] == world.base_url + row["path"] and row["served"] for row in here)


def test_heldout_dataset_files_show_their_scenes(tmp_path: Path) -> None:
    table = pq.read_table(make_heldout_dataset(tmp_path, n=20, size=64)).to_pylist()
    assert len({row["caption"] for row in table}) == 20
    for row in table:
        image = np.asarray(Image.open(tmp_path / row["image"]))
        scene = draw_scene(row["scene_seed"])
        assert np.array_equal(image, render(scene, 64)) and row["caption"] == caption_for(scene)
