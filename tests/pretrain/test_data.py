"""Samples, views and the order of batches."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch
from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from pipeline.stage import Context
from schemas.sample import make_text
from stages.concepts import CONCEPTS, Concepts
from stages.models.tokenize import CachedTokenizer
from stages.pretrain.data import ArraySamples, ShardDataset
from stages.pretrain.draws import epoch_order, generator
from stages.pretrain.errors import DataError, TrainError
from stages.pretrain.images import ArrayImage, draw_crop, eval_view, open_image, train_view
from stages.pretrain.loader import BatchLoader, Position, Views
from stages.pretrain.objectives import make_objective
from stages.pretrain.objectives.base import normalise


def loader(dataset_dir: Path, workers: int, rank: int = 0, world_size: int = 1, seed: int = 3) -> BatchLoader:
    objective = make_objective("clip", {"text": "random"})
    return BatchLoader(ShardDataset(dataset_dir), objective.collate, CachedTokenizer(12), objective.needs, Views(16), 8,
                       seed, workers, rank=rank, world_size=world_size)


def take(stream, count: int) -> list:
    batches = [next(stream) for _ in range(count)]
    stream.close()
    return batches


def test_only_what_the_manifest_lists_is_read(write_dataset, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", samples=12, shards=3)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"].pop()
    (root / "manifest.json").write_text(json.dumps(manifest))
    assert len(ShardDataset(root)) == 8


def test_sample_of_the_index_is_the_one_in_the_tar(dataset_dir: Path) -> None:
    data = ShardDataset(dataset_dir)
    seen = set()
    for i in range(len(data)):
        image = data.image(i)
        number = int(data.caption(i).split()[-1])
        colour = {0: 0, 1: 1, 2: 2}.get(number % 4)
        mean = image.decode().reshape(-1, 3).mean(axis=0)
        if colour is not None:
            assert mean.argmax() == colour  # red, green and blue images are brightest in their own channel
        assert image.shape == (40, 48)
        assert data.texts(i)[0] == data.caption(i) and len(data.texts(i)) == 2
        seen.add(number)
    assert seen == set(range(24))


def test_dataset_survives_pickling_with_open_tars(dataset_dir: Path) -> None:
    data = ShardDataset(dataset_dir)
    before = data.image_bytes(3)
    assert pickle.loads(pickle.dumps(data)).image_bytes(3) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "manifest.json").unlink(), "manifest.json does not exist"),
        (lambda root: (root / "manifest.json").write_text("{"), "is not JSON"),
        (lambda root: (root / "manifest.json").write_text('{"format": 2}'), "format 2"),
        (lambda root: (root / "shards/train-00000.parquet").unlink(), "train-00000.parquet"),
    ],
)
def test_damaged_folder_is_refused(write_dataset, tmp_path: Path, damage, message: str) -> None:
    root = write_dataset(tmp_path / "d", samples=4)
    damage(root)
    with pytest.raises(DataError, match=message):
        ShardDataset(root)


def test_index_with_other_row_count_than_manifest_is_refused(write_dataset, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", samples=4)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["samples"] += 1
    (root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="manifest.json says 3"):
        ShardDataset(root)


def test_unknown_split_names_those_there_are(dataset_dir: Path) -> None:
    with pytest.raises(DataError, match="no split 'valid'; it has: train"):
        ShardDataset(dataset_dir, "valid")


def test_sample_that_does_not_decode_names_key_and_tar(write_dataset, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", samples=8, shards=1)
    data = ShardDataset(root)
    with (root / "shards/train-00000.tar").open("r+b") as tar:
        tar.seek(int(data._offset[3]))
        tar.write(bytes(int(data._size[3])))
    for workers in (0, 2):
        with pytest.raises(DataError, match=f"{data.key(3)} does not decode .*train-00000.tar"):
            take(loader(root, workers).batches(Position()), 1)


def test_tar_cut_short_names_key(write_dataset, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", samples=2, shards=1)
    data = ShardDataset(root)
    tar = root / "shards/train-00000.tar"
    tar.write_bytes(tar.read_bytes()[: int(data._offset[1]) + 10])
    with pytest.raises(DataError, match=f"{data.key(1)}.*10 of"):
        data.image(1)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (97, 131), (131, 97), (40, 200), (20, 30)])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_eval_view_equals_open_clip(height: int, width: int, resize_mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    config = PreprocessCfg(size=32, resize_mode=resize_mode)
    theirs = image_transform_v2(config, is_train=False)(Image.fromarray(pixels))
    ours = torch.from_numpy(eval_view(ArrayImage(pixels), 32, resize_mode=resize_mode).copy())[None]
    torch.testing.assert_close(normalise({"x": ours}, config.mean, config.std)["x"][0], theirs, atol=1e-6, rtol=0)


def test_jpeg_decodes_to_the_pixels_pillow_gives(dataset_dir: Path) -> None:
    data = ShardDataset(dataset_dir)
    index = next(i for i in range(len(data)) if data._ext[i].as_py() == "jpg")
    theirs = np.asarray(Image.open(io.BytesIO(data.image_bytes(index))).convert("RGB"))
    assert np.abs(data.image(index).decode().astype(int) - theirs.astype(int)).max() <= 2


def test_what_the_download_takes_for_sound_can_be_trained_on() -> None:
    whole = simplejpeg.encode_jpeg(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    profile = b"\xff\xe2" + (20).to_bytes(2, "big") + b"ICC_PROFILE\0\x09\x01abcd"  # part 9 of 1
    for odd in (whole[:2] + profile + whole[2:], whole.replace(b"\xff\xda", b"\xff\0\xff\xda", 1), whole + b"behind"):
        image = open_image(odd, "jpg")
        assert image.shape == (48, 64) and np.array_equal(image.decode(), simplejpeg.decode_jpeg(whole))
    with pytest.raises(ValueError, match="Premature end"):
        open_image(whole[: len(whole) // 2], "jpg").decode()


def test_crops_have_the_distribution_of_random_resized_crop() -> None:
    image, scale, ratio = torch.zeros(3, 60, 100), [0.3, 0.8], [3 / 4, 4 / 3]
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(4000)])
    ours = np.array([draw_crop(generator(0, 0, str(i), "c"), 60, 100, scale) for i in range(4000)])
    spread = theirs.std(axis=0) / np.sqrt(4000)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 5 * spread).all()
    assert (ours[:, 0] + ours[:, 2] <= 60).all() and (ours[:, 1] + ours[:, 3] <= 100).all()
    assert AugmentationCfg().scale == Views(16).crop_scale  # open_clip's default area


def test_crop_of_a_banner_falls_back_to_the_centre() -> None:
    assert draw_crop(generator(0, 0, "k", "c"), 10, 1000, (0.9, 1.0)) == (0, 493, 10, 13)


def test_train_view_of_shrunk_jpeg_is_close_to_full_decoding(write_dataset, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", samples=1, shards=1, height=300, width=400)
    image = ShardDataset(root).image(0)
    pixels = image.decode()
    pixels = np.clip(pixels.astype(int) + np.linspace(0, 80, 400).astype(int)[None, :, None], 0, 255).astype(np.uint8)
    full = train_view(ArrayImage(pixels), 32, generator(0, 0, "k", "c"))
    small = train_view(ArrayImage(pixels), 32, generator(0, 0, "k", "c"), decode_margin=2.0)
    assert np.array_equal(full, small)  # arrays are never shrunk, so the margin changes nothing
    shrunk = train_view(image, 32, generator(0, 0, "k", "c"))
    whole = train_view(ArrayImage(image.decode()), 32, generator(0, 0, "k", "c"))
    assert np.abs(shrunk.astype(int) - whole.astype(int)).mean() < 3


def test_epoch_order_is_a_permutation_and_differs_between_epochs() -> None:
    first, second = epoch_order(1, 0, 500), epoch_order(1, 1, 500)
    assert sorted(first) == sorted(second) == list(range(500))
    assert not np.array_equal(first, second) and not np.array_equal(first, epoch_order(2, 0, 500))
    assert np.array_equal(first, epoch_order(1, 0, 500))
    assert abs(np.corrcoef(first, np.arange(500))[0, 1]) < 0.2  # over the whole set, not within a buffer


def test_draws_differ_by_every_part_of_their_name() -> None:
    draws = [generator(*name).random() for name in
             [(0, 0, "a", "x"), (1, 0, "a", "x"), (0, 1, "a", "x"), (0, 0, "b", "x"), (0, 0, "a", "y")]]
    assert len(set(draws)) == 5


def test_an_epoch_holds_every_sample_once_whatever_the_workers(dataset_dir: Path) -> None:
    streams = [take(loader(dataset_dir, workers).batches(Position()), 5) for workers in (0, 1, 3)]
    for other in streams[1:]:
        for a, b in zip(streams[0], other, strict=True):
            assert a.keys == b.keys and a.position == b.position
            assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    epoch = [key for batch in streams[0][:3] for key in batch.keys]
    assert len(set(epoch)) == 24 and streams[0][3].position == Position(1, 0)


def test_stream_from_a_position_goes_on_as_if_unbroken(dataset_dir: Path) -> None:
    whole = take(loader(dataset_dir, 2).batches(Position()), 6)
    rest = take(loader(dataset_dir, 2).batches(Position(1, 1)), 2)
    assert [batch.keys for batch in rest] == [batch.keys for batch in whole[4:]]
    assert torch.equal(rest[0].tensors["images"], whole[4].tensors["images"])


def test_ranks_share_each_batch_and_draw_as_one_rank(dataset_dir: Path) -> None:
    whole = take(loader(dataset_dir, 0).batches(Position()), 3)
    ranks = [take(loader(dataset_dir, 0, rank, 2).batches(Position()), 3) for rank in (0, 1)]
    for alone, first, second in zip(whole, *ranks, strict=True):
        assert alone.keys == first.keys + second.keys
        both = torch.cat([first.tensors["images"], second.tensors["images"]])
        assert torch.equal(alone.tensors["images"], both)


def test_random_text_takes_all_texts_over_epochs(dataset_dir: Path) -> None:
    batches = take(loader(dataset_dir, 0).batches(Position()), 30)
    by_key: dict[str, set[tuple[int, ...]]] = {}
    for batch in batches:
        for key, tokens in zip(batch.keys, batch.tensors["tokens"].tolist(), strict=True):
            by_key.setdefault(key, set()).add(tuple(tokens))
    assert {len(texts) for texts in by_key.values()} == {2}


def test_batch_larger_than_the_set_or_not_divisible_is_refused(dataset_dir: Path) -> None:
    objective = make_objective("clip")
    samples = ArraySamples(np.zeros((4, 16, 16, 3), np.uint8), [["a"]] * 4, list("abcd"))
    for batch_size, world, message in ((8, 1, "more than the 4 samples"), (3, 2, "does not divide by 2 ranks")):
        with pytest.raises(TrainError, match=message):
            BatchLoader(samples, objective.collate, CachedTokenizer(8), objective.needs, Views(16), batch_size, 0,
                        world_size=world)


def test_cached_tokenizer_equals_open_clip() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    texts = ["A Red  square &amp; more!", "!!! a", "", "a red square " * 20, "A Red  square &amp; more!"]
    assert torch.equal(CachedTokenizer(16)(texts), SimpleTokenizer(context_length=16)(texts))


def test_concepts_of_a_sample_are_found_by_its_text(write_dataset, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "dataset", samples=6, shards=1)
    plain = ShardDataset(root)
    assert plain.concepts(0, plain.caption(0)) == []
    index = root / "shards" / "train-00000.parquet"
    stage = Concepts(Concepts.Params(dictionary=str(write_names(tmp_path)), min_score=1))
    table = pq.read_table(index)
    texts = [[make_text("no colour at all"), make_text(caption)] for caption in table["caption"].to_pylist()]
    found = stage.compute([{"texts": some} for some in texts], Context("concepts", 0))
    pq.write_table(table.append_column("concepts", pa.array([one["concepts"] for one in found], CONCEPTS)), index)
    data = ShardDataset(root)
    for at in range(6):
        caption = data.caption(at)
        [span] = data.concepts(at, caption)
        assert caption[span["start_char"] : span["end_char"]] == span["id"] and data.concepts(at, "no colour at all") == []


def write_names(folder: Path) -> Path:
    (folder / "names.txt").write_text("red\ngreen\nblue\nyellow\n")
    return folder / "names.txt"
