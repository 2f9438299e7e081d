"""The page's numbers, read back from the page, are those of the run; its samples are the ones it says they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import Fatal, RecipeError
from pipeline.run import open_run
from pipeline.store import VALUES
from pipeline.summary import account
from schemas.dataset import Manifest
from stages.report import facts, job
from stages.report.collect import Collector, Group, Limits
from stages.report.job import MAX_PAGE_BYTES, ReportParams, write_report


def number(text: str) -> int:
    return int(re.sub(r"[^\d]", "", text))


def test_numbers_on_the_page_are_those_of_the_run(make_run, plain_rows, read_page) -> None:
    run = make_run(plain_rows(200))
    found = account(run)
    page = read_page(Path(write_report(run)["report"]))
    for key in ("input", "kept", "dropped", "failed"):
        assert number(page.by_id[f"n-{key}"]) == found[key] > 0, key
    assert number(page.by_id["n-shards"]) == sum(json.loads((run.dataset / "shards" / "sizes.json").read_text()).values()) == found["kept"]
    data = json.loads(page.by_id["data"])
    assert data["rows"] == {"input": 200, "kept": found["kept"], "dropped": found["dropped"], "failed": found["failed"], "shards": found["kept"]}
    told = {(step["stage"], one["status"], one["reason"]): one["rows"] for step in data["steps"] for one in step["leaving"]}
    assert told == {(e["stage"], kind, e["reason"]): e["rows"] for kind in ("dropped", "failed") for e in found["by_reason"][kind]}
    reached = 200
    for step in data["steps"]:
        assert step["reached"] == reached
        reached = step["stayed"] = step["reached"] - sum(one["rows"] for one in step["leaving"])
    assert reached == found["kept"]
    waterfall = page.by_id["rows"]
    for (_, _, reason), rows in told.items():
        assert reason in waterfall and f"−{rows:,}" in waterfall


def test_rows_that_the_shard_writer_drops_are_a_step_of_their_own(make_run, plain_rows, read_page) -> None:
    run = make_run(plain_rows(60))
    manifest = json.loads((run.dataset / "manifest.json").read_text())
    manifest["counts"]["stages"]["write_shards"] = {"dropped": {"duplicate_row": 2}, "failed": {}}
    manifest["splits"]["train"]["samples"] -= 2
    (run.dataset / "manifest.json").write_text(json.dumps(manifest))
    data = json.loads(read_page(Path(write_report(run)["report"])).by_id["data"])
    assert data["rows"]["kept"] == data["rows"]["shards"] == account(run)["kept"] - 2
    assert data["rows"]["input"] == data["rows"]["kept"] + data["rows"]["dropped"] + data["rows"]["failed"]
    assert data["steps"][-1] == {"stage": "write_shards", "reached": account(run)["kept"], "stayed": account(run)["kept"] - 2,
                                 "leaving": [{"status": "dropped", "reason": "duplicate_row", "rows": 2}]}  # fmt: skip


def test_numbers_that_do_not_add_up_are_refused(make_run, plain_rows) -> None:
    run = make_run(plain_rows(60))
    found = Collector(run, Limits()).collect()
    found.counts[Group("grade", "dropped", "low_clip")] += 1
    with pytest.raises(Fatal, match="do not add up"):
        facts.make_waterfall(run, found)
    run.records()[("verdicts", "grade", 0)].counts["dropped:low_clip"] += 1
    with pytest.raises(Fatal, match="rows were read"):
        Collector(run, Limits()).collect()


def test_a_dataset_of_an_earlier_state_is_said_to_be_one(make_run, plain_rows, read_page) -> None:
    rows = plain_rows(60)
    make_run(rows)
    run = make_run(rows, min=0.7, jobs=())
    page = read_page(Path(write_report(run)["report"]))
    assert "earlier state" in page.text and "n-shards" not in page.by_id
    assert number(page.by_id["n-kept"]) == account(run)["kept"]


def test_galleries_show_the_rows_nearest_to_the_limit_and_the_same_random_rows_for_any_part_size(make_run, plain_rows) -> None:
    rows = plain_rows(200)
    small, large = (Collector(make_run(rows, f"run{size}", size), Limits(nearest=5)).collect() for size in (17, 200))
    scores = sorted(row["score"] for row in rows if row["score"] is not None and not row["url"].endswith("gone"))
    group = Group("grade", "dropped", "low_clip")
    for found in (small, large):
        (threshold,) = [place for place, t in enumerate(found.thresholds) if t.stage == "grade"]
        assert found.deciding(found.left[group]) == [threshold]
        grade = found.thresholds[threshold].measure
        below = [found.samples[place].scores[grade] for place in found.left[group].nearest[threshold].places()]
        above = [found.samples[place].scores[grade] for place in found.kept.nearest[threshold].places()]
        assert below == pytest.approx([score for score in scores if score < 0.5][:-6:-1])
        assert above == pytest.approx([score for score in scores if score >= 0.5][:5])
    drawn = [[found.samples[place].identifier for place in found.kept.random.places()] for found in (small, large)]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 24
    other = Collector(make_run(rows, "again", 50), Limits(seed=1)).collect()
    assert [other.samples[place].identifier for place in other.kept.random.places()] != drawn[0]


def test_histograms_count_every_measured_row_by_its_fate(make_run, plain_rows) -> None:
    run = make_run(plain_rows(200))
    found = Collector(run, Limits()).collect()
    place = next(place for place, measure in enumerate(found.measures) if measure.label == "grade")
    counts, measured = run.counts()["grade"], run.records()
    without = sum(record.counts["value"] for (kind, stage, _), record in measured.items() if kind == VALUES and stage == "grade")
    kept, elsewhere, here = found.histograms[place].total.tolist()
    nulls = sum(row["score"] is None and not row["url"].endswith("gone") for row in plain_rows(200))
    assert (kept, elsewhere, here) == (counts["kept"] - nulls, 0, counts["dropped"])
    assert kept + here + nulls == without


def test_the_page_is_a_function_of_the_run_and_an_unchanged_one_is_not_written_again(make_run, plain_rows) -> None:
    rows = plain_rows(60)
    run = make_run(rows, jobs=("write_shards", "report"))
    page = run.root / "report.html"
    first, stamp = page.read_bytes(), page.stat().st_mtime_ns
    make_run(rows, jobs=("write_shards", "report"))
    assert page.stat().st_mtime_ns == stamp
    write_report(open_run(run.root))
    assert page.read_bytes() == first and page.stat().st_mtime_ns != stamp
    make_run(rows, min=0.9, jobs=("write_shards", "report"))
    assert page.read_bytes() != first


def test_images_are_small_jpegs_and_what_cannot_be_shown_is_said(make_run, plain_rows, read_page) -> None:
    rows = plain_rows(20)
    for row in rows:
        row["score"] = 0.9
    rows[3]["url"] += "/broken"
    run = make_run(rows, jobs=())
    page = read_page(Path(write_report(run)["report"]))
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert images and all(image["src"].startswith("data:image/jpeg;base64,/9j/") for image in images)
    assert {(image["width"], image["height"]) for image in images} == {("160", "6")}
    assert "cannot be shown: " in page.text and "no image was stored" in page.text
    for tar in (run.root / "blobs").rglob("*.tar"):
        tar.unlink()
    page = read_page(Path(write_report(run)["report"]))
    assert "no longer there" in page.text and not any(tag == "img" for tag, _ in page.elements)


def test_images_stay_within_their_budget(make_run, plain_rows, read_page) -> None:
    run = make_run(plain_rows(200))
    one = write_report(run, ReportParams(image_bytes=2_000))
    page = read_page(Path(one["report"]))
    assert one["images_left_out"] > 20 and "images were left out" in page.text
    used = sum(len(attributes["src"]) for tag, attributes in page.elements if tag == "img")
    assert 2_000 <= used < 6_000 and one["bytes"] < MAX_PAGE_BYTES


def test_a_page_that_would_be_too_large_shows_fewer_samples_and_says_so(make_run, plain_rows, read_page, monkeypatch) -> None:
    run = make_run(plain_rows(200))
    whole = write_report(run, ReportParams(kept=100, per_reason=50))
    monkeypatch.setattr(job, "MAX_PAGE_BYTES", whole["bytes"] // 3)
    smaller = write_report(run, ReportParams(kept=100, per_reason=50))
    page = read_page(Path(smaller["report"]))
    assert smaller["bytes"] <= whole["bytes"] // 3 and 0 < smaller["samples"] < whole["samples"]
    assert "Fewer samples are shown" in page.text and number(page.by_id["n-input"]) == 200


def test_captions_stand_beside_the_alt_text(make_run, plain_rows, read_page) -> None:
    run = make_run(plain_rows(60))
    page = read_page(Path(write_report(run)["report"]))
    kept = account(run)["kept"]
    lines = {cells[0]: [number(cell) for cell in cells[1:4]] for cells in page.cells if cells and cells[0] in ("alt_text", "captioner")}
    assert lines == {"alt_text": [kept, kept, 0], "captioner": [kept, kept, kept]}
    assert "captioner (painter-1)" in page.by_id["texts"] and "caption of thing number" in page.by_id["texts"]


def test_what_a_captioner_wrote_stands_beside_the_alt_text_and_is_counted(make_run, plain_rows, read_page) -> None:
    run = make_run(plain_rows(30), between=({"caption_short": {"use": "caption"}},), models={"mllm": {"kind": "fake"}})
    page = read_page(Path(write_report(run)["report"]))
    width = next(len(cells) for cells in page.cells if cells and cells[0] == "captioner")
    (line,) = [cells for cells in page.cells if len(cells) == width and cells[0] == "caption_short"]
    written = [text for part in range(len(run.parts)) for text in written_texts(run, part)]
    assert number(line[1]) == len(written) > 3
    assert "caption_short (fake)" in page.by_id["texts"] + page.text and written[0] in page.text


def written_texts(run, part: int) -> list[str]:
    """Captions of the kept rows of a part."""
    view = run.view(part)
    texts = view.masked(run.chain.find_column("caption_short.text")).to_pylist()
    return [text for text, fate in zip(texts, run.final(view).to_pylist(), strict=True) if text and fate["status"] == 0]


def test_truth_gives_precision_and_recall(make_run, plain_rows, read_page, tmp_path) -> None:
    rows = plain_rows(200)
    run = make_run(rows)
    gone = [row["url"].endswith("gone") for row in rows]
    expected = ["http_4xx" if bad else "low_clip" if (row["score"] or 1) < 0.45 else "" for bad, row in zip(gone, rows, strict=True)]
    truth = tmp_path / "truth.parquet"
    pq.write_table(pa.table({"expected_reason": expected, "original_row": pa.array([-1] * 200)}), truth)
    page = read_page(Path(write_report(run, ReportParams(truth=str(truth)))["report"]))
    lines = {cells[0]: cells[1:] for cells in page.cells if len(cells) == 6 and cells[0] in ("http_4xx", "low_clip")}
    taken = sum(not bad and row["score"] is not None and row["score"] < 0.5 for bad, row in zip(gone, rows, strict=True))
    meant = expected.count("low_clip")
    assert lines["http_4xx"] == ["20", "20", "20", "100.0%", "100.0%"]
    assert lines["low_clip"] == [str(meant), str(taken), str(meant), f"{meant / taken:.1%}", "100.0%"]
    pq.write_table(pa.table({"expected_reason": expected[1:], "original_row": pa.array([-1] * 199)}), truth)
    with pytest.raises(RecipeError, match="199 rows and the run 200"):
        write_report(run, ReportParams(truth=str(truth)))
    with pytest.raises(RecipeError, match="cannot read"):
        write_report(run, ReportParams(truth=str(tmp_path / "none.parquet")))


def test_a_later_filter_is_held_against_the_wrong_texts_that_reached_it(make_run, plain_rows, tmp_path) -> None:
    """Rows whose text the truth calls wrong may be found by the CLIP score or, behind it, by the MLLM."""
    from stages.demo.mllm_truth import score_filter
    from stages.demo.truth import score_rules

    scored = {"mllm_score": {"aspects": ["image_text_matching"], "thresholds": {"image_text_matching": 50}}}
    run = make_run(plain_rows(200), after=(scored,), models={"mllm": {"kind": "fake"}})
    truth = tmp_path / "truth.parquet"
    expected = ["low_clip" if i % 3 == 0 else "" for i in range(200)]
    pq.write_table(pa.table({"expected_reason": expected, "original_row": pa.array([-1] * 200)}), truth)
    reasons = [reason or "" for part in range(len(run.parts)) for reason in run.final(run.view(part))["reason"].to_pylist()]
    rules = {rule.reason: rule for rule in score_rules(run, truth)}
    both = [want == "low_clip" and got == "low_mllm" for want, got in zip(expected, reasons, strict=True)]
    left = [want == "low_clip" and got in ("", "low_mllm") for want, got in zip(expected, reasons, strict=True)]
    assert (rules["low_mllm"].planted, rules["low_mllm"].taken, rules["low_mllm"].right) == (sum(left), reasons.count("low_mllm"), sum(both))
    assert 5 < sum(both) < sum(left) and rules["low_clip"].planted == expected.count("low_clip")
    found = score_filter(run, truth)
    assert found is not None and (found.wrong, found.taken, found.right) == (sum(left), reasons.count("low_mllm"), sum(both))
    assert found.scored == reasons.count("") + reasons.count("low_mllm")


def test_auc_of_scores_where_rows_were_corrupted(make_run, plain_rows, read_page) -> None:
    run = make_run(plain_rows(200), between=({"corrupt": {"eta": 0.3}},), jobs=("write_shards", {"score_quality": {"columns": ["grade"]}}))
    page = read_page(Path(write_report(run)["report"]))
    (line,) = json.loads(page.by_id["data"])["auc"]
    measured = json.loads((run.root / "measure" / "score_quality.json").read_text())["grade"]
    assert line["label"] == "grade" and line["clean"] + line["corrupted"] == measured["rows"] and line["corrupted"] == measured["corrupted"]
    assert line["auc"] == pytest.approx(measured["auc"], abs=1e-4) and line["auc"] > 0.6
    assert ["grade", str(line["clean"]), str(line["corrupted"]), f"{line['auc']:.3f}"] in page.cells


def test_what_a_cut_saved_follows_from_later_costs(make_run, plain_rows) -> None:
    run = make_run(plain_rows(200))
    for part in range(len(run.parts)):
        run.records()[("values", "grade", part)].info |= {"seconds": 4.0, "model_seconds": 2.0}
    waterfall = facts.make_waterfall(run, Collector(run, Limits()).collect())
    waterfall.steps[1].leaving[0].status = "dropped"  # as if a rule had taken what paint failed on: 20 of 200
    paint, grade = facts.make_costs(run, waterfall)
    assert (grade.seconds, grade.model_seconds, grade.computed, grade.saved) == (20.0, 10.0, 180, 0.0)
    assert paint.saved == pytest.approx(20 / 180 * 20.0) and paint.saved_model == pytest.approx(20 / 180 * 10.0)


@pytest.mark.parametrize("n", [1, 2, 9])
@pytest.mark.parametrize("first", ["paint", None])
def test_tiny_runs_and_runs_without_images(make_run, plain_rows, read_page, n: int, first: str | None) -> None:
    rows = plain_rows(n)
    rows[0] |= {"url": None, "alt_text": None, "note": None, "score": None}
    run = make_run(rows, first=first, jobs=())
    page = read_page(Path(write_report(run)["report"]))
    assert number(page.by_id["n-input"]) == n == sum(number(page.by_id[f"n-{key}"]) for key in ("kept", "dropped", "failed"))


def test_a_late_recipe_counts_a_row_where_it_left_though_later_stages_measured_it(make_run, plain_rows) -> None:
    early, late = (make_run(plain_rows(200), f"run{late}", late=late, between=({"grade0": {"use": "grade", "min": 0.4}},)) for late in (False, True))
    found = {run.root: Collector(run, Limits()).collect() for run in (early, late)}
    assert found[early.root].counts == found[late.root].counts
    last = next(place for place, measure in enumerate(found[early.root].measures) if measure.label == "grade.grade")
    kept, elsewhere, here = found[late.root].histograms[last].total.tolist()
    assert elsewhere == late.counts()["grade0"]["dropped"] > 0
    assert [kept, 0, here] == found[early.root].histograms[last].total.tolist()
    assert facts.make_waterfall(late, found[late.root]).kept == account(early)["kept"]


def test_trainings_and_evaluations_stand_on_the_page(make_run, plain_rows, read_page, tmp_path) -> None:
    run, other = make_run(plain_rows(30)), tmp_path / "other"
    for root, recall in ((run.root, 0.25), (other, 0.125)):
        (root / "pretrain" / "small").mkdir(parents=True)
        lines = [json.dumps({"step": step, "loss": 4 - step / 100}) for step in range(10, 310, 10)]
        (root / "pretrain" / "small" / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 310, "lo']))
        (root / "evaluate").mkdir()
        result = {"image_to_text_recall@1": recall, "images": 50, "inputs": "x", "classification": {"accuracy@1": recall / 2}}
        (root / "evaluate" / "evaluate.json").write_text(json.dumps(result))
    page = read_page(Path(write_report(run, ReportParams(compare={"raw rows": str(other)}))["report"]))
    assert ["image to text recall@1", "25.0 %", "12.5 %"] in page.cells
    assert ["classification: accuracy@1", "12.5 %", "6.2 %"] in page.cells
    assert sum(tag == "polyline" for tag, _ in page.elements) == 2


def test_command_line(make_run, plain_rows, tmp_path) -> None:
    run = make_run(plain_rows(60))
    toys = ["--import", str(Path(__file__).with_name("toys.py"))]
    done = CliRunner().invoke(app, ["report", str(run.root), "--json", *toys])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["report"] == str(run.root / "report.html") and told["bytes"] == (run.root / "report.html").stat().st_size
    done = CliRunner().invoke(app, ["report", str(run.root), "--share", "--out", str(tmp_path / "shared.html"), *toys])
    assert done.exit_code == 0 and "shared.html" in done.stdout and (tmp_path / "shared.html").is_file()
    assert write_report(run, out=tmp_path)["report"] == str(tmp_path / "report.html")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "nothing")])
    assert done.exit_code == 2 and "no run here" in done.stderr
    next((run.root / "verdicts" / "grade").glob("*.parquet")).unlink()
    done = CliRunner().invoke(app, ["report", str(run.root), *toys])
    assert done.exit_code == 1 and "not finished" in done.stderr and "Traceback" not in done.stderr


def test_head_and_tail_of_a_balance_stand_on_the_page_and_in_json(make_run, read_page) -> None:
    rows = [{"url": f"https://web.example/{i}", "alt_text": f"thing {i}", "note": f"kind {i % 3 if i < 60 else 9}", "score": 0.9} for i in range(100)]
    run = make_run(rows, between=({"balance": {"caps": [{"by": "note", "max": 25}]}},))
    wanted = [["kind 9", 40, 25], ["kind 0", 20, 20], ["kind 1", 20, 20], ["kind 2", 20, 20]]
    told = write_report(run)
    [rule] = told["balance"]["balance"]
    assert rule["head"] == wanted and rule["bands"] == [[10, 99, 4, 100, 85]] and (rule["before"], rule["after"]) == (100, 85)
    page = read_page(Path(told["report"]))
    assert ["kind 9", "40", "25", "62.5%"] in page.cells and ["all 4 groups of 10 to 99 rows", "100", "85", "85.0%"] in page.cells
    assert json.loads(page.by_id["data"])["balance"] == told["balance"]
    assert account(run)["by_reason"]["dropped"] == [{"stage": "balance", "reason": "balanced_out", "rows": 15}]
    manifest = json.loads((run.dataset / "manifest.json").read_text())
    assert manifest["facts"]["balance"]["balance"] == told["balance"]["balance"] and Manifest.load(run.dataset).facts == manifest["facts"]
