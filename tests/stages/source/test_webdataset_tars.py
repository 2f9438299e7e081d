from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import build_params
from schemas.sample import sample_id
from stages.source.tar_reader import MAX_HEADER_BYTES, Member, Problem, read_tar
from stages.source.tar_samples import group_members, split_key
from stages.source.webdataset_tars import WebdatasetTars
from tests.stages.source.made_tars import bytes_at, facts, picture, rows_of, sample, write_tar


def source(tars: Any, **params: Any) -> WebdatasetTars:
    given = [str(path) for path in tars] if isinstance(tars, list) else str(tars)
    return WebdatasetTars(build_params(WebdatasetTars, {"tars": given, **params}, "input"))


def test_a_row_has_text_path_place_and_an_id_of_them(tmp_path):
    path = write_tar(tmp_path / "00000.tar", [*sample("a", 1), *sample("b", 2, "zwei\n")])
    rows = rows_of(source(path))
    assert facts(rows) == [("00000.tar/a.jpg", "text of a", None), ("00000.tar/b.jpg", "zwei", None)]
    assert [bytes_at(row) for row in rows] == [picture(1), picture(2)]
    assert rows[0]["sample_id"] == sample_id("webdataset_tars", "00000.tar/a.jpg", "text of a")
    assert rows[0]["url"] is None


def test_ids_do_not_depend_on_where_the_tars_lie(tmp_path):
    ids = []
    for folder in (tmp_path / "one", tmp_path / "deep" / "er"):
        write_tar(folder / "a" / "0.tar", sample("k", 1))
        write_tar(folder / "b" / "0.tar", sample("k", 2))
        found = source(folder)
        rows = rows_of(found)
        assert [row["path"] for row in rows] == ["a/0.tar/k.jpg", "b/0.tar/k.jpg"]
        ids.append(([row["sample_id"] for row in rows], found.fingerprint()))
    assert ids[0] == ids[1]


def test_tars_of_webdatasets_own_writer(tmp_path):
    wds = pytest.importorskip("webdataset")
    with wds.TarWriter(str(tmp_path / "w.tar")) as writer:
        for number in range(5):
            writer.write({"__key__": f"dir/s{number}", "png": picture(number, format="PNG"), "txt": f"caption {number}", "cls": number, "json": {"n": number}})
    rows = rows_of(source(tmp_path / "w.tar"))
    assert [(row["alt_text"], row["cls"], row["n"], row["failure"]) for row in rows] == [(f"caption {n}", str(n), n, None) for n in range(5)]
    assert all(bytes_at(row) == picture(n, format="PNG") for n, row in enumerate(rows))


@pytest.mark.parametrize("name", ["dir.v1/a.jpg", "a.seg.png", ".hidden.jpg", "plain", "x/__meta__/a.jpg", "a.JPG", "deep/er/a.b.c"])
def test_keys_are_those_of_webdataset(name):
    tariterators = pytest.importorskip("webdataset.tariterators")
    theirs = None if tariterators.re.search(r"__[^/]*__($|/)", name) else tariterators.base_plus_ext(name)
    ours = split_key(name)
    if ours is None or not ours[1]:
        assert theirs in (None, (None, None))
    else:
        assert ours == (theirs[0], theirs[1].lower())


def test_keys_with_dots_fail_with_advice_and_work_with_the_other_rule(tmp_path):
    path = write_tar(tmp_path / "t.tar", [*sample("photo.1", 1), *sample("photo.2", 2)])
    (row,) = rows_of(source(path))
    assert row["failure"] == "missing_image" and "input.key=last_dot" in row["failure_detail"]
    assert facts(rows_of(source(path, key="last_dot"))) == [("t.tar/photo.1.jpg", "text of photo.1", None), ("t.tar/photo.2.jpg", "text of photo.2", None)]


def test_members_of_a_key_may_stand_apart_in_any_order(tmp_path):
    members = [member for number in range(50) for member in sample(f"k{number:02}", number)]
    random.Random(0).shuffle(members)
    rows = rows_of(source(write_tar(tmp_path / "t.tar", members)))
    assert len(rows) == 50 and not any(row["failure"] for row in rows)
    assert sorted(facts(rows)) == [(f"t.tar/k{n:02}.jpg", f"text of k{n:02}", None) for n in range(50)]
    assert all(bytes_at(row) == picture(int(row["path"][-6:-4])) for row in rows)


def test_held_texts_are_bounded_and_what_comes_too_late_fails(tmp_path):
    members: list[Any] = [Member("late.jpg", 0, 9)]
    members += [Member(f"k{n}.{ext}", 0, 900, b"x" * 900) for n in range(40) for ext in ("jpg", "txt")]
    members.append(Member("late.txt", 0, 5, b"text"))
    samples = list(group_members(members, held_bytes=20_000))
    assert [s.key for s in samples if not s.code] == ["late", *(f"k{n}" for n in range(40))]
    (failed,) = [s for s in samples if s.code]
    assert failed.key == "late.txt" and "20,000 bytes" in failed.detail


def test_a_key_that_comes_twice_fails_and_the_first_stands(tmp_path):
    path = write_tar(tmp_path / "t.tar", [*sample("a", 1, "first"), *sample("b", 2), *sample("a", 3, "second"), *sample("a", 4, "third")])
    rows = rows_of(source(path))
    assert facts(rows) == [
        ("t.tar/a.jpg", "first", None), ("t.tar/b.jpg", "text of b", None), ("t.tar/a.jpg", "second", "bad_row"), ("t.tar/a.jpg", "third", "bad_row"),
    ]  # fmt: skip
    assert bytes_at(rows[0]) == picture(1) and "the first stands" in rows[2]["failure_detail"]


def test_links_devices_and_names_that_lead_out_are_failed_rows(tmp_path):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        kinds = {"l.jpg": tarfile.SYMTYPE, "h.jpg": tarfile.LNKTYPE, "d.jpg": tarfile.CHRTYPE, "p.jpg": tarfile.FIFOTYPE}
        for name, kind in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd" if name == "l.jpg" else "ok.jpg"
            tar.addfile(info)
        for name in ("/abs/a.jpg", "up/../../b.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    write_tar(path, [("./ok.jpg", picture(1)), ("./ok.txt", b"ok"), ("README", b"hello"), (".DS_Store", b"x")], "a")
    rows = rows_of(source(path))
    failed = {row["path"]: row["failure"] for row in rows if row["failure"]}
    unsafe = ("t.tar/l.jpg", "t.tar/h.jpg", "t.tar/d.jpg", "t.tar/p.jpg", "t.tar//abs/a.jpg", "t.tar/up/../../b.jpg")
    assert failed == {**dict.fromkeys(unsafe, "unsafe_path"), "t.tar/README": "bad_row"}
    assert [row["path"] for row in rows if not row["failure"]] == ["t.tar/ok.jpg"]
    assert "/etc/passwd" in next(row["failure_detail"] for row in rows if row["path"].endswith("l.jpg"))
    assert all(row["source_file"] is None for row in rows if row["failure"])


@pytest.mark.parametrize("cut", ["image", "text", "header", "between", "mark"])
def test_a_cut_tar_keeps_what_came_before_and_names_the_byte(tmp_path, cut):
    path = write_tar(tmp_path / "t.tar", [member for n in range(4) for member in sample(f"k{n}", n)], format=tarfile.USTAR_FORMAT)
    with tarfile.open(path) as tar:
        places = {info.name: info for info in tar}
    at = {
        "image": places["k3.jpg"].offset_data + 100,
        "text": places["k3.txt"].offset_data + 3,
        "header": places["k3.jpg"].offset + 77,
        "between": places["k3.txt"].offset,
        "mark": places["k3.txt"].offset_data + 512,
    }[cut]
    path.write_bytes(path.read_bytes()[:at])
    rows = rows_of(source(path))
    good = [row for row in rows if not row["failure"]]
    assert [row["path"] for row in good] == [f"t.tar/k{n}.jpg" for n in range(4 if cut == "mark" else 3)]
    assert [row["alt_text"] for row in good] == [f"text of k{n}" for n in range(len(good))]
    failed = [row for row in rows if row["failure"]]
    assert failed and all(row["failure"] == "unreadable" and str(at) in row["failure_detail"] for row in failed)
    assert failed[-1]["path"] == "t.tar"
    assert [row["path"] for row in failed[:-1]] == (["t.tar/k3.jpg"] if cut in ("image", "text", "between") else [])


def test_a_damaged_header_in_the_middle_is_told_and_not_taken_for_the_end(tmp_path):
    path = write_tar(tmp_path / "t.tar", [member for n in range(4) for member in sample(f"k{n}", n)])
    with tarfile.open(path) as tar:
        at = tar.getmember("k2.jpg").offset
    data = bytearray(path.read_bytes())
    data[at : at + 40] = b"\xff" * 40
    path.write_bytes(data)
    rows = rows_of(source(path))
    assert [row["path"] for row in rows if not row["failure"]] == ["t.tar/k0.jpg", "t.tar/k1.jpg"]
    assert f"byte {at}" in rows[-1]["failure_detail"] and rows[-1]["failure"] == "unreadable"


def test_joined_tars_and_files_that_are_no_tars_are_told(tmp_path):
    one, two = write_tar(tmp_path / "1.tar", sample("a")), write_tar(tmp_path / "2.tar", sample("b"))
    joined = tmp_path / "joined.tar"
    joined.write_bytes(one.read_bytes() + two.read_bytes())
    rows = rows_of(source(joined))
    assert [row["failure"] for row in rows] == [None, "unreadable"] and "joined" in rows[1]["failure_detail"]
    for name, data in (("empty.tar", b""), ("text.tar", b"no tar at all" * 100), ("page.tar", b"<html>" + b" " * 2000)):
        (tmp_path / name).write_bytes(data)
        (row,) = rows_of(source(tmp_path / name))
        assert (row["path"], row["failure"]) == (name, "unreadable") and "byte 0" in row["failure_detail"]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_of_pax_and_gnu(tmp_path, format):
    key = "ordner/" + "ü" * 120 + "/" + "n" * 150
    path = write_tar(tmp_path / "t.tar", [*sample(key, 1), *sample("b", 2)], format=format)
    rows = rows_of(source(path))
    assert facts(rows) == [(f"t.tar/{key}.jpg", f"text of {key}", None), ("t.tar/b.jpg", "text of b", None)]
    assert [bytes_at(row) for row in rows] == [picture(1), picture(2)]


def test_a_huge_extended_header_is_refused(tmp_path):
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = {"comment": "x" * (2 * MAX_HEADER_BYTES)}
    data = info.tobuf(tarfile.PAX_FORMAT)
    path = tmp_path / "t.tar"
    path.write_bytes(data + b"\0" * 1024)
    (row,) = rows_of(source(path))
    assert row["failure"] == "unreadable" and "extended header" in row["failure_detail"]


def test_compressed_tars_give_the_same_rows_and_offsets_of_the_plain_bytes(tmp_path):
    members = [member for n in range(20) for member in sample(f"k{n}", n)]
    plain = rows_of(source(write_tar(tmp_path / "p" / "t.tar", members)))
    packed = rows_of(source(write_tar(tmp_path / "z" / "t.tar.gz", members, "w:gz")))
    assert [(row["alt_text"], row["source_offset"], row["source_size"]) for row in packed] == [
        (row["alt_text"], row["source_offset"], row["source_size"]) for row in plain
    ]


def test_a_cut_gzip_keeps_what_came_before(tmp_path):
    rng = random.Random(0)
    members = [(f"k{n}.{ext}", rng.randbytes(3000)) for n in range(20) for ext in ("jpg", "txt")]
    path = write_tar(tmp_path / "t.tar", members)
    packed = tmp_path / "z.tar.gz"
    data = gzip.compress(path.read_bytes(), 1)
    packed.write_bytes(data[: len(data) // 2])
    rows = rows_of(source(packed))
    good = [row for row in rows if not row["failure"]]
    assert 7 <= len(good) <= 10 and [row["path"] for row in good] == [f"z.tar.gz/k{n}.jpg" for n in range(len(good))]
    assert rows[-1]["failure"] == "unreadable" and rows[-1]["path"] == "z.tar.gz" and "byte" in rows[-1]["failure_detail"]


def test_json_gives_caption_url_texts_and_further_fields(tmp_path):
    record = {"caption": "from json", "url": "http://x.example/1.jpg", "more": ["two", {"text": "three", "kind": "caption"}], "similarity": 0.5, "width": 7}
    broken = {"b.jpg": picture(2), "b.json": b"{broken", "c.jpg": picture(3)}
    path = write_tar(tmp_path / "t.tar", {"a.jpg": picture(1), "a.json": json.dumps(record).encode(), **broken})
    rows = rows_of(source(path, texts_field="more"))
    first = rows[0]
    assert (first["alt_text"], first["url"], first["similarity"], first["input_width"]) == ("from json", "http://x.example/1.jpg", 0.5, 7)
    assert [(entry["text"], entry["kind"]) for entry in first["texts"]] == [("from json", "alt_text"), ("two", "alt_text"), ("three", "caption")]
    assert (rows[1]["failure"], rows[2]["failure"], rows[2]["alt_text"], rows[2]["texts"]) == ("bad_row", None, "", [])


def test_a_field_of_another_type_costs_its_row_only(tmp_path):
    members = {}
    for number in range(3):
        members |= {f"k{number}.jpg": picture(number), f"k{number}.json": json.dumps({"n": number if number != 1 else {"odd": "\ud800"}}).encode()}
    path = write_tar(tmp_path / "t.tar", members)
    rows = rows_of(source(path, column_types={"n": "int"}))
    assert [(row["n"], row["failure"]) for row in rows] == [(0, None), (None, "bad_row"), (2, None)]
    assert "input.column_types={n: string}" in rows[1]["failure_detail"]
    assert [row["n"] for row in rows_of(source(path))][::2] == ["0", "2"]


def test_lines_are_captions_of_their_own(tmp_path):
    path = write_tar(tmp_path / "t.tar", {"a.jpg": picture(1), "a.txt": b"one\r\n\ntwo\none\n"})
    (row,) = rows_of(source(path, lines=True))
    assert row["alt_text"] == "one" and [entry["text"] for entry in row["texts"]] == ["one", "two"]
    assert {entry["source"] for entry in row["texts"]} == {row["sample_id"].hex()}


def test_of_several_images_the_first_of_the_list_is_taken(tmp_path):
    path = write_tar(tmp_path / "t.tar", {"a.png": picture(1, format="PNG"), "a.jpg": picture(2), "a.txt": b"x", "a.seg.png": b"mask"})
    assert [row["path"] for row in rows_of(source(path))] == ["t.tar/a.jpg"]
    assert [row["path"] for row in rows_of(source(path, image=["seg.png"]))] == ["t.tar/a.seg.png"]


def test_errors_name_the_option(tmp_path):
    with pytest.raises(RecipeError, match="input.tars: no file matches"):
        rows_of(source(tmp_path / "none-*.tar"))
    with pytest.raises(RecipeError, match=r"unknown key 'captoin' \(did you mean 'caption'\?\)"):
        source(tmp_path, captoin="txt")


def test_mutated_tars_never_raise_and_end(tmp_path):
    members = [member for n in range(3) for member in sample(f"k{n}", n)] + [("l" * 150 + ".jpg", b"x" * 600)]
    whole = write_tar(tmp_path / "t.tar", members, format=tarfile.PAX_FORMAT).read_bytes()
    rng = random.Random(1)
    path = tmp_path / "m.tar"
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 12)):
            block = rng.randrange(len(data) // 512) * 512
            data[block + rng.randrange(512)] = rng.choice((0, 32, 45, 48, 55, 128, 255, rng.randrange(256)))
        if rng.random() < 0.3:  # a header whose sum is right, and its fields wild
            header = bytearray(data[:512])
            header[124:136] = rng.choice((b"\x80" + b"\0" * 3 + rng.randbytes(8), b"\xff" * 12, b"7" * 11 + b"\0", b"-0000000512\0"))
            header[156:157] = rng.choice((b"0", b"x", b"g", b"L", b"K", b"S", b"1", b"V", b"\0"))
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            data[:512] = header
        path.write_bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data)
        found = list(read_tar(str(path), path.stat().st_size, lambda name: 1000))
        assert len(found) < 50 and all(isinstance(entry, Member | Problem) for entry in found)
        for entry in found:
            if isinstance(entry, Member) and not entry.problem:
                assert 0 <= entry.offset and 0 <= entry.size and entry.offset + entry.size <= path.stat().st_size
