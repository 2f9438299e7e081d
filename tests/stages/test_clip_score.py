"""clip_score: cropping as open_clip does it, scores against a plain computation, ranking, window, bad rows."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.errors import Fatal, RecipeError
from pipeline.models import LocalModel
from pipeline.stage import Context
from schemas.outcome import Failure
from schemas.sample import make_text
from stages.clip_score import ClipScore
from stages.images.crop import crop_image
from stages.images.decode import decode
from stages.images.header import ImageError
from stages.images.normalize import ImageRules, normalize

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from open_clip.transform import PreprocessCfg, image_transform_v2  # noqa: E402

from stages.models import open_clip as kind  # noqa: E402

SPEC = {"kind": "open_clip", "name": "ViT-S-32-alt", "weights": "random", "batch_size": 4, "device": "cpu", "threads": 2}


class Bytes:
    """What a row's `image` offers."""

    def __init__(self, data: bytes):
        self.data = data

    def read(self) -> bytes:
        return self.data


@pytest.fixture(scope="module")
def model() -> kind.OpenClipModel:
    return kind.load(SPEC)


@pytest.fixture
def run(model: kind.OpenClipModel) -> Callable[..., list[Any]]:
    """Rows through prepare, embed and finish."""

    def through(rows: list[dict[str, Any]], **params: Any) -> list[Any]:
        stage, handle = ClipScore(ClipScore.Params(**params)), LocalModel(model)
        ctx = Context("clip_score", 0, model=handle)
        answer = handle.submit(stage.model_method, stage.prepare(rows, ctx)).result()
        return stage.finish(rows, answer, ctx)

    return through


def row(data: bytes, *texts: str, at: int = 0) -> dict[str, Any]:
    entries = [make_text(text, source=f"{number:032x}") for number, text in enumerate(texts)]
    return {"image": Bytes(data), "texts": entries, "sample_id": at.to_bytes(16, "big")}


def own_transform(data: bytes, size: int, mode: str, filter: str = "bicubic") -> np.ndarray:
    """open_clip's own preprocessing up to the tensor, without its normalisation: float [H, W, 3], 0 to 255."""
    config = PreprocessCfg(size=size, resize_mode=mode, interpolation=filter, mean=(0, 0, 0), std=(1, 1, 1), fill_color=0)
    tensor = image_transform_v2(config, is_train=False)(Image.open(io.BytesIO(data)))
    return tensor.permute(1, 2, 0).numpy() * 255


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("shape", [(333, 250), (250, 333), (224, 224), (100, 71), (224, 500), (301, 225)])
def test_crop_equals_open_clips_transform(mode: str, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (*shape[::-1], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    ours, theirs = crop_image(out.getvalue(), 224, mode), own_transform(out.getvalue(), 224, mode)
    assert ours.shape == (224, 224, 3) and ours.dtype == np.uint8
    difference = np.abs(ours - theirs)
    assert difference.mean() < 0.6 and np.percentile(difference, 99) <= 6


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_crop_of_real_photos_and_their_embeddings(photos: list[Path], model: kind.OpenClipModel, mode: str) -> None:
    """Photos are decoded at a half where that suffices; embeddings are compared without the part all photos share."""
    ours = np.stack([crop_image(path.read_bytes(), 224, mode) for path in photos[:12]])
    theirs = np.stack([own_transform(path.read_bytes(), 224, mode) for path in photos[:12]])
    assert np.abs(ours - theirs).mean() < 4.0
    if mode == "squash":
        return
    first, second = model.embed_images(ours), model.embed_images(np.rint(theirs).astype(np.uint8))
    assert (first * second).sum(1).min() > 0.99
    first, second = first - second.mean(0), second - second.mean(0)
    assert ((first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)).min() > 0.95


def test_embeddings_equal_the_plain_model(model: kind.OpenClipModel, jpeg: Callable[..., bytes]) -> None:
    pixels = np.stack([crop_image(jpeg(300, 260, seed), 224) for seed in range(6)])
    mean, std = torch.tensor(model.mean), torch.tensor(model.std)
    with torch.inference_mode():
        plain = model.model.encode_image(((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2), normalize=True)
        words = model.model.encode_text(open_clip.get_tokenizer("ViT-S-32-alt")(["a red dog", "two cats"]), normalize=True)
    assert np.abs(model.embed_images(pixels) - plain.numpy()).max() < 1e-5
    assert np.abs(model.embed_texts(["a red dog", "two cats"]) - words.numpy()).max() < 1e-5
    assert model.embed_images(pixels).dtype == np.float32 and model.embed_dim == 256 == plain.shape[1]


def test_embeddings_do_not_depend_on_the_batch(model: kind.OpenClipModel) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 224, 224, 3), dtype=np.uint8)
    texts = [f"text number {number}" for number in range(9)]
    images, words = model.embed_images(pixels), model.embed_texts(texts)
    for at in (0, 3, 8):
        assert (model.embed_images(pixels[at : at + 1]) == images[at]).all()
        assert (model.embed_texts(texts[at : at + 1]) == words[at]).all()
    assert (model.embed_images(pixels[::-1])[::-1] == images).all()
    assert model.embed_images(pixels[:0]).shape == (0, 256) == model.embed_texts([]).shape


def test_read_only_pixels_are_taken(model: kind.OpenClipModel) -> None:
    pixels = np.zeros((4, 224, 224, 3), np.uint8)
    pixels.flags.writeable = False
    assert model.embed_images(pixels).shape == (4, 256)


def test_wrong_pixels_are_refused(model: kind.OpenClipModel) -> None:
    for wrong in (np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 224, 224, 3), np.float32)):
        with pytest.raises(ValueError, match="takes uint8"):
            model.embed_images(wrong)


def test_values_against_a_plain_computation(run: Callable[..., list[Any]], model: kind.OpenClipModel, jpeg: Callable[..., bytes]) -> None:
    texts = ["a cat on a mat", "a dog", "something else entirely, and long", "blue"]
    values = run([row(jpeg(300, 300, 1), *texts), row(jpeg(300, 300, 2), "only one")])
    image = model.embed_images(crop_image(jpeg(300, 300, 1), 224)[None])[0].astype(np.float64)
    scores = [round(float(sum(a * b for a, b in zip(image, model.embed_texts([text])[0].astype(np.float64), strict=True))), 4) for text in texts]
    order = sorted(range(4), key=lambda at: -scores[at])
    first = values[0]
    assert list(first) == list(ClipScore.writes)
    assert np.allclose(first["clip_scores"], scores, atol=1e-7) and first["text_rank"] == order
    assert first["text"] == texts[order[0]] and first["clip_score"] == pytest.approx(scores[order[0]], abs=1e-7)
    assert [entry["text"] for entry in first["texts"]] == [texts[at] for at in order]
    assert [entry["source"] for entry in first["texts"]] == [f"{at:032x}" for at in order]
    assert [entry["clip_score"] for entry in first["texts"]] == pytest.approx([scores[at] for at in order], abs=1e-7)
    assert first["image_emb"].dtype == np.float16 and np.abs(first["image_emb"] - image).max() < 1e-3
    assert np.abs(first["text_emb"] - model.embed_texts([first["text"]])[0]).max() < 1e-3
    assert values[1]["text"] == "only one" and len(values[1]["clip_scores"]) == 1


def test_plain_strings_and_the_most_texts(run: Callable[..., list[Any]], jpeg: Callable[..., bytes]) -> None:
    plain = {"image": Bytes(jpeg()), "texts": "a caption", "sample_id": b"\x07" * 16}
    (values,) = run([plain])
    assert values["texts"] == [make_text("a caption", source="07" * 16, clip_score=values["clip_score"])]
    (values,) = run([row(jpeg(), "a", "b", " ", "c", "d")], max_texts=3)
    assert sorted(entry["text"] for entry in values["texts"]) == ["a", "b", "c"]


def test_bad_rows_cost_only_themselves(run: Callable[..., list[Any]], jpeg: Callable[..., bytes]) -> None:
    good = [row(jpeg(seed=seed), f"text {seed}", "other") for seed in range(4)]
    cut, none = row(jpeg(300, 300)[:4000], "cut", "b"), {"image": None, "texts": [make_text("x")], "sample_id": b"\1" * 16}
    mixed = run([cut, good[0], none, good[1], good[2], cut, good[3]])
    alone = [run([one])[0] for one in good]
    assert [result.code for result in mixed if isinstance(result, Failure)] == ["corrupt_image", "bad_row", "corrupt_image"]
    for result, single in zip([mixed[1], mixed[3], mixed[4], mixed[6]], alone, strict=True):
        assert result["clip_scores"] == single["clip_scores"] and result["text"] == single["text"]
        assert (result["image_emb"] == single["image_emb"]).all()


def test_batch_without_a_good_image(run: Callable[..., list[Any]]) -> None:
    assert [result.code for result in run([row(b"<html>", "a"), row(b"\xff\xd8\xff\xe0", "b")])] == ["not_an_image", "corrupt_image"]


def test_row_without_text_is_dropped_with_its_image_measured(run: Callable[..., list[Any]], jpeg: Callable[..., bytes]) -> None:
    for texts in ([], None, [make_text("")], "", "  "):
        (values,) = run([{"image": Bytes(jpeg()), "texts": texts, "sample_id": b"\0" * 16}])
        assert values["clip_score"] is None and values["texts"] == [] and values["image_emb"].shape == (256,)
        drop = ClipScore(ClipScore.Params(min=None)).decide(values, {})
        assert drop is not None and (drop.reason, drop.detail) == ("low_clip", "no text")
        keeping = ClipScore(ClipScore.Params(keep_without_text=True))
        assert keeping.decide(values, {}) is None
        column = {"clip_score": pa.array([None, 0.1, 0.5], pa.float32())}
        assert keeping.decide_columns(column).to_pylist() == [None, "low_clip", None]


@pytest.mark.parametrize(
    ("score", "params", "reason", "detail"),
    [
        (0.28, {}, None, ""), (0.2799, {}, "low_clip", "0.2799 < 0.28"), (0.1, {"min": None}, None, ""),
        (0.5, {"max": 0.5}, None, ""), (0.5001, {"max": 0.5}, "high_clip", "0.5001 > 0.5"), (0.9, {}, None, ""),
    ],
)  # fmt: skip
def test_window_at_its_edges(score: float, params: dict[str, Any], reason: str | None, detail: str) -> None:
    drop = ClipScore(ClipScore.Params(**params)).decide({"clip_score": float(np.float32(score))}, {})
    assert (drop.reason, drop.detail) == (reason, detail) if reason and drop else drop is None and reason is None


def test_orientation_is_applied(jpeg: Callable[..., bytes]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = jpeg(600, 400, exif=exif)
    upright = io.BytesIO()
    Image.fromarray(decode(turned)).save(upright, "PNG")
    assert np.abs(crop_image(turned, 64).astype(int) - crop_image(upright.getvalue(), 64)).mean() < 4


def test_description_holds_what_prepare_needs(model: kind.OpenClipModel) -> None:
    facts = model.describe()
    assert (facts["image_size"], facts["resize_mode"], facts["interpolation"], facts["embed_dim"]) == (224, "shortest", "bicubic", 256)
    assert facts["digest"] == model.digest and "random weights" in facts["note"]


def test_identity_follows_the_weights(tmp_path: Path) -> None:
    tag = {"kind": "open_clip", "name": "ViT-B-32", "weights": "laion2b_s34b_b79k"}
    assert kind.identity(tag) == "ViT-B-32:laion2b_s34b_b79k"
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"one")
    one = kind.identity({**tag, "weights": str(file)})
    file.write_bytes(b"two!")
    assert kind.identity({**tag, "weights": str(file)}) != one
    assert kind.identity({**tag, "weights": str(tmp_path)}) != one


def test_wrong_specs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"kind": "open_clip", "name": "ViT-B-32", "weights": "random"}
    for wrong, message in (
        ({**good, "precison": "fp32"}, "precision"), ({**good, "precision": "fp8"}, "none of"), ({"kind": "open_clip"}, "needs `name`"),
        ({**good, "weights": str(tmp_path / "none.pt")}, "does not exist"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=message):
            kind.identity(wrong)
    with pytest.raises(Fatal, match="ViT-X-99"):
        kind.load({**good, "name": "ViT-X-99"})


def test_weights_that_cannot_be_fetched_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"ViT-B-32:no_such_tag(.|\n)*local checkpoint"):
        kind.load({"kind": "open_clip", "name": "ViT-B-32", "weights": "no_such_tag", "cache_dir": str(tmp_path)})


def test_an_image_that_only_this_decode_finds_broken(run: Callable[..., list[Any]], jpeg: Callable[..., bytes]) -> None:
    """As `download` with `check: header` stores it: the same reason as a check that decodes gives."""
    whole = jpeg(300, 300)
    header_only = normalize(whole[: len(whole) // 2], ImageRules(check="header")).data
    found = run([row(whole, "a"), row(header_only, "b")])
    assert not isinstance(found[0], Failure)
    assert isinstance(found[1], Failure) and found[1].code == "corrupt_image"
    with pytest.raises(ImageError) as told:
        normalize(header_only, ImageRules())
    assert told.value.detail == found[1].detail
