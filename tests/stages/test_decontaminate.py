"""decontaminate and known_dup through the machine, on pictures made to be found and pictures made not to be."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pipeline.chain import Chain
from pipeline.cli import app
from pipeline.errors import Fatal, RecipeError
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, RunResult, open_run, run
from pipeline.storage import place_of
from stages.demo.image_bytes import encode
from stages.images.leaks import THUMB, VIEW, agreement, border_box, index_picture, looks, windows
from stages.index.build import build_index
from stages.index.evaluation import EvaluationSets, _contents, digests_of, opened
from stages.index.files import SUFFIX, make_index, read_index, write_index
from stages.index.from_run import index_of_run
from stages.index.manage import merged

CLIP = {"kind": "open_clip", "weights": "bundled:rendered_clip", "device": "cpu"}


def picture(seed: int, width: int = 320, height: int = 240) -> np.ndarray:
    """Structure at several scales, as photos have."""
    draw = np.random.default_rng(seed)
    layers = [cv2.resize(draw.normal(size=(n * 3 // 4, n, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC) for n in (4, 12, 36)]
    mixed = 128 + 40 * layers[0] + 28 * layers[1] + 16 * layers[2]
    return np.clip(mixed, 0, 255).astype(np.uint8)


def disguised(pixels: np.ndarray) -> np.ndarray:
    """8 % of both sides cut off, a line of text, a white border."""
    height, width = pixels.shape[:2]
    cut = pixels[round(height * 0.06) : height - round(height * 0.02), round(width * 0.03) : width - round(width * 0.05)].copy()
    cv2.putText(cut, "www.example.com", (12, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2, cv2.LINE_AA)
    return cv2.copyMakeBorder(cut, 14, 14, 14, 14, cv2.BORDER_CONSTANT, value=(255, 255, 255))


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    made = tmp_path / "evaluation"
    made.mkdir()
    for row in range(5):
        (made / f"e{row}.jpg").write_bytes(encode(picture(row), "jpg", 92))
    (made / "e0.txt").write_text("a quick brown fox jumps over the lazy dog in the evening")
    return made


@pytest.fixture
def training(tmp_path: Path, evaluation: Path) -> Path:
    """Copies of evaluation pictures in every disguise, a text of one, and pictures that are none."""
    made = tmp_path / "training"
    made.mkdir()
    (made / "same.jpg").write_bytes((evaluation / "e0.jpg").read_bytes())
    (made / "low.jpg").write_bytes(encode(picture(1), "jpg", 50))
    (made / "half.jpg").write_bytes(encode(cv2.resize(picture(2), (160, 120), interpolation=cv2.INTER_AREA), "jpg", 90))
    (made / "disguised.jpg").write_bytes(encode(disguised(picture(3)), "jpg", 85))
    (made / "mirrored.jpg").write_bytes(encode(np.ascontiguousarray(picture(4)[:, ::-1]), "jpg", 90))
    for row in range(6):
        (made / f"other{row}.jpg").write_bytes(encode(picture(100 + row), "jpg", 90))
    (made / "other0.txt").write_text("Look: a QUICK brown fox jumps over the lazy dog, in the evening!")
    (made / "other1.txt").write_text("a quick brown fox")
    return made


def ran(folder: Path, out: Path, *stages: Any, **top: Any) -> RunResult:
    given = {"kind": "image_folder", "folder": str(folder), "rows_per_part": 4}
    jobs = top.pop("jobs", [])
    data = {"name": "d", "input": given, "stages": ["read_images", *stages], "jobs": jobs, **top}
    return run(build_recipe(data), out, RunOptions(executor="local", jobs=bool(jobs)))


def fates(result: RunResult) -> dict[str, tuple[str, str]]:
    """Name of each image without extension -> reason and detail, of those that went."""
    found = {}
    for part in range(len(result.view.parts)):
        view = result.view.view(part)
        final = result.view.final(view)
        for path, reason, detail in zip(
            result.view.read(view, ["path"])["path"].to_pylist(), final["reason"].to_pylist(), final["detail"].to_pylist(), strict=True
        ):
            if reason:
                found[path.removesuffix(".jpg")] = (reason, detail)
    return found


def test_each_disguise_is_found_and_nothing_else(evaluation: Path, training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index = tmp_path / f"eval{SUFFIX}"
    write_index(build_index("eval", [str(evaluation)]), index)
    result = ran(training, tmp_path / "run", {"decontaminate": {"against": [str(index)]}}, jobs=["write_shards"])
    found = fates(result)
    assert {name: reason for name, (reason, _) in found.items()} == dict.fromkeys(["same", "low", "half", "disguised", "other0"], "contaminated")
    assert found["same"][1] == "bytes of eval/e0.jpg" and found["other0"][1] == "text of eval/e0.jpg: overlaps 1.0000"
    assert all(found[name][1].startswith(f"image of eval/e{row}.jpg: agrees 0.") for row, name in ((1, "low"), (2, "half"), (3, "disguised")))
    # The list of what went is part of the dataset, under the digests of its manifest.
    manifest = json.loads((tmp_path / "run/dataset/manifest.json").read_text())
    assert manifest["counts"]["stages"]["decontaminate"]["dropped"] == {"contaminated": 5} and len(manifest["rejected"]) == 3
    # The same set as a folder gives the same fates; thresholds move without a look at an image.
    assert {name: one[0] for name, one in fates(ran(training, tmp_path / "plain", {"decontaminate": {"against": [str(evaluation)]}})).items()} == {
        name: one[0] for name, one in found.items()
    }
    moved = ran(training, tmp_path / "run", {"decontaminate": {"against": [str(index)], "min_agreement": None, "min_overlap": None}})
    assert sum(moved.tally.computed.values()) == 0 and set(fates(moved)) == {"same"}
    mirrored = ran(training, tmp_path / "run", {"decontaminate": {"against": [str(index)], "mirrored": True, "min_overlap": None}})
    assert set(fates(mirrored)) == {"same", "low", "half", "disguised", "mirrored"}
    with pytest.raises(RecipeError, match="no index 'evla'.*nor is there a folder"):
        ran(training, tmp_path / "none", {"decontaminate": {"against": ["evla"]}})
    # A finished run can be read when its evaluation set is gone; what would run again says so before it changes anything.
    evaluation.rename(tmp_path / "moved")
    _contents.cache_clear()
    assert open_run(tmp_path / "plain").counts()["decontaminate"]["dropped:contaminated"] == 5
    sample = open_run(tmp_path / "plain").store.read("values", "source", 0, ["sample_id"])["sample_id"][0].as_py().hex()
    refused = CliRunner().invoke(app, ["forget", str(tmp_path / "plain"), "--id", sample])
    assert refused.exit_code == 2 and "there is no such folder" in refused.output and not (tmp_path / "plain/forgotten.json").exists()


def test_the_nearest_embedding_against_a_loop() -> None:
    draw = np.random.default_rng(0)
    stored, asked = (draw.normal(size=(count, 16)).astype(np.float16) for count in (30, 9))
    columns = {"item": [f"{at:02d}" for at in range(31)], "image_emb": pa.array([*(one.tobytes() for one in stored), None], pa.binary(32))}
    sets = EvaluationSets([make_index("e", pa.table(columns), {"digest": "m"})], 10, 8, True)
    found = sets.nearest_embeddings([*(one.tobytes() for one in asked), None])
    assert found.pop() is None
    for one, answer in zip(asked.astype(np.float64), found, strict=True):
        cosines = [float(one @ other) / float(np.linalg.norm(one) * np.linalg.norm(other)) for other in stored.astype(np.float64)]
        assert answer is not None and answer[0] == f"e/{int(np.argmax(cosines)):02d}" and abs(answer[1] - max(cosines)) < 1e-4
    with pytest.raises(Fatal, match="use one model for both"):
        sets.nearest_embeddings([b"\0" * 8])


@pytest.mark.slow
def test_embeddings_of_one_model_are_compared(evaluation: Path, training: Path, tmp_path: Path) -> None:
    index = tmp_path / f"eval{SUFFIX}"
    for image in training.glob("*.jpg"):
        image.with_suffix(".txt").write_text("a picture of something")
    write_index(build_index("eval", [str(evaluation)], model=CLIP), index)
    stage = {"decontaminate": {"against": [str(index)], "embeddings": True, "min_agreement": None, "min_overlap": None, "min_cosine": 0.995}}
    result = ran(training, tmp_path / "run", {"clip_score": {"min": None}}, stage, models={"clip": CLIP})
    found = fates(result)
    told, cosine = found["low"][1].rsplit(" ", 1)
    assert found["same"][1].startswith("bytes") and told == "emb of eval/e1.jpg: cosine" and 0.995 <= float(cosine) <= 1
    view = result.view.view(0)
    cosines = result.view.read(view, ["contam_cosine", "image_emb"])
    table = build_index("eval", [str(evaluation)], model=CLIP).table
    stored = np.stack([np.frombuffer(value, np.float16).astype(np.float64) for value in table["image_emb"].to_pylist()])
    for row in cosines.to_pylist():
        unit = np.frombuffer(row["image_emb"], np.float16).astype(np.float64)
        expected = max(float(one @ unit) / float(np.linalg.norm(one) * np.linalg.norm(unit)) for one in stored)
        assert abs(row["contam_cosine"] - expected) < 2e-4
    plain = tmp_path / f"plain{SUFFIX}"
    write_index(build_index("plain", [str(evaluation)]), plain)
    with pytest.raises(RecipeError, match="has no embeddings"):
        ran(training, tmp_path / "none", {"clip_score": {"min": None}}, {"decontaminate": {"against": [str(plain)], "embeddings": True}}, models={"clip": CLIP})


def test_an_increment_leaves_out_what_an_earlier_run_has(training: Path, tmp_path: Path) -> None:
    hashed = {"image_hash": {"pdq": False}}
    first = ran(training, tmp_path / "first", hashed)
    index = tmp_path / f"first{SUFFIX}"
    write_index(index_of_run(first.view, "first"), index)
    more = tmp_path / "more"
    more.mkdir()
    (more / "again.jpg").write_bytes((training / "other2.jpg").read_bytes())
    (more / "near.jpg").write_bytes(encode(picture(103), "jpg", 40))
    (more / "new.jpg").write_bytes(encode(picture(200), "jpg", 90))
    (more / "mirrored.jpg").write_bytes(encode(np.ascontiguousarray(picture(104)[:, ::-1]), "jpg", 90))
    stage = {"known_dup": {"indexes": [str(index)]}}
    second = ran(more, tmp_path / "second", hashed, stage)
    found = fates(second)
    ids = {path: value.hex() for part in range(3) for path, value in zip(*columns(first, part), strict=True)}
    assert found["again"] == ("exact_dup", f"known: first/{ids['other2.jpg']}")
    assert found["near"][0] == "near_dup" and found["near"][1].startswith(f"known: first/{ids['other3.jpg']}, ") and set(found) == {"again", "near"}
    strict = ran(more, tmp_path / "second", hashed, {"known_dup": {"indexes": [str(index)], "max_distance": 0}})
    assert sum(strict.tally.computed.values()) == 0
    turned = fates(ran(more, tmp_path / "turned", {"image_hash": {"pdq": False, "mirrored": True}}, stage))
    assert set(turned) == {"again", "near", "mirrored"} and turned["mirrored"][1].startswith(f"known: first/{ids['other4.jpg']}, ")
    with pytest.raises(RecipeError, match="raise search_distance"):
        ran(more, tmp_path / "none", hashed, {"known_dup": {"indexes": [str(index)], "max_distance": 9}})


def columns(result: RunResult, part: int) -> tuple[list[str], list[bytes]]:
    table = result.view.read(result.view.view(part), ["path", "sample_id"])
    return table["path"].to_pylist(), table["sample_id"].to_pylist()


def test_agreement_of_windows_and_borders() -> None:
    grey = cv2.cvtColor(picture(1), cv2.COLOR_RGB2GRAY)
    assert border_box(grey) == (0, 240, 0, 320)
    assert border_box(cv2.copyMakeBorder(grey, 7, 9, 11, 13, cv2.BORDER_CONSTANT, value=9)) == (7, 247, 11, 331)
    _, box, thumb = index_picture(picture(1))
    assert tuple(box) == (0, 0, 128, 128) and len(windows()) == 28
    own, other = looks(picture(1))[0], looks(picture(2))[0]
    small = np.frombuffer(thumb, np.uint8).reshape(THUMB, THUMB)
    assert agreement(small, (0, 0, 1, 1), own.view) > 0.97 and agreement(small, (0, 0, 1, 1), other.view) < 0.4
    flat = np.full((VIEW, VIEW), 128, np.uint8)
    assert agreement(np.full((THUMB, THUMB), 128, np.uint8), (0, 0, 1, 1), flat) == 0.0


def test_photos_planted_among_others_are_found(photos: list[Path]) -> None:
    """40 photos as the evaluation set, each in its hardest disguise, and the rest as what must not be found; the bench has the bar's 500 and 4,500."""
    pictures = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in photos[:80]]
    indexed = []
    for number, pixels in enumerate(pictures[:40]):
        hashes, box, thumb = index_picture(pixels)
        indexed.append({"item": str(number), "windows": hashes, "box": box, "thumb": thumb})
    sets = EvaluationSets([make_index("e", pa.Table.from_pylist(indexed))], 10, 8, False)
    hidden = sets.nearest_pictures([looks(disguised(cv2.resize(pixels, (640, 480)))) for pixels in pictures[:40]])
    found = [answer is not None and answer[0] == f"e/{number}" and answer[2] >= 0.6 for number, answer in enumerate(hidden)]
    assert np.mean(found) >= 0.9
    others = sets.nearest_pictures([looks(pixels) for pixels in pictures[40:]])
    assert not [answer for answer in others if answer is not None and answer[2] >= 0.6]


def test_a_folder_is_known_by_its_captions_and_the_tars_in_it_too(evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (evaluation / "inner").mkdir()
    with tarfile.open(evaluation / "inner/more.tar", "w") as tar:
        tar.add(evaluation / "e4.jpg", "0001.jpg")
    (evaluation / "bad.jpg").write_bytes((evaluation / "e1.jpg").read_bytes()[:900])
    (evaluation / "bad.txt").write_text("the caption of a picture that nobody can decode today")
    before = digests_of((str(evaluation),), False)
    made = opened(str(evaluation)).table.to_pylist()
    assert [one["item"] for one in made] == ["bad.jpg", *(f"e{nth}.jpg" for nth in range(5)), "more.tar/0001.jpg"]
    assert made[0]["texts"] and made[0]["raw_sha256"] and made[0]["phash"] is None and made[6]["raw_sha256"] == made[5]["raw_sha256"]
    assert "1 of its images cannot be compared as pictures, such as bad.jpg" in capsys.readouterr().err
    (evaluation / "e0.txt").write_text("another caption of as many words as it had before, at least")
    _contents.cache_clear()
    assert digests_of((str(evaluation),), False) != before and opened(str(evaluation)).table.to_pylist()[1]["texts"] != made[1]["texts"]


def test_what_cannot_be_compared_is_refused(evaluation: Path, tmp_path: Path) -> None:
    def refused(*stages: Any) -> str:
        data = {"name": "d", "input": {"kind": "image_folder", "folder": str(evaluation)}, "models": {"clip": CLIP}, "stages": ["read_images", *stages]}
        with pytest.raises(RecipeError) as told:
            Chain(build_recipe(data))
        return str(told.value)

    def index(name: str, trimmed: bool | None = None, model: dict[str, Any] | None = None, **columns: Any) -> str:
        path = tmp_path / f"{name}{SUFFIX}"
        write_index(make_index(name, pa.table({"item": ["a"], **columns}), model, trimmed), path)
        return str(path)

    emb = {"image_emb": pa.array([b"12"], pa.binary(2))}
    against = {"against": [index("other", model={"identity": "another"}, **emb)], "embeddings": True}
    assert "of another model than those of this recipe" in refused("clip_score", {"decontaminate": against})
    assert "stand in indexes alone" in refused("clip_score", {"decontaminate": {"against": [str(evaluation)], "embeddings": True}})
    assert "there is no such folder" in refused({"decontaminate": {"against": [str(tmp_path / "none")]}})
    assert "cannot be read as evaluation texts" in refused({"decontaminate": {"against": [str(tmp_path / "none.txt")]}})
    hashes = {"image_hash": {"pdq": False}}
    bytes_alone, trimmed = index("bytes"), index("trimmed", True, phash=pa.array([b"12345678"]), phash_quality=pa.array([80], pa.int16()))
    assert "image_hash makes no pdq here" in refused(hashes, {"known_dup": {"indexes": [trimmed], "by": "pdq"}})
    assert "index bytes has no phash hashes" in refused(hashes, {"known_dup": {"indexes": [bytes_alone]}})
    assert "image_hash.trimmed=true, and here it is set otherwise" in refused(hashes, {"known_dup": {"indexes": [trimmed]}})
    given = [read_index(place_of(path)) for path in (trimmed, index("plain", False, phash=pa.array([b"12345678"])))]
    with pytest.raises(RecipeError, match="merge those of one kind"):
        merged("both", given)
    same = [read_index(place_of(index(name, model={"identity": "m", **more}, **emb))) for name, more in (("run", {}), ("eval", {"width": 1}))]
    assert merged("both", same).facts.model["identity"] == "m"
