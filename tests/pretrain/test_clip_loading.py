"""Loading by name, file and folder; digests; compact embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.models.open_clip_loader import ModelLoadError, compact_rows, expand_rows, load_clip, weights_digest
from stages.pretrain.export import export_clip
from stages.pretrain.nets.towers import build_clip
from stages.pretrain.objectives.base import TINY_CLIP


def test_digest_depends_on_names_types_shapes_and_values_only() -> None:
    base = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.0)}
    digest = weights_digest(base)
    assert weights_digest(dict(reversed(base.items()))) == digest
    strided = torch.arange(6.0).view(2, 3).T.contiguous().T
    assert weights_digest({**base, "a": strided}) == digest
    others = [{**base, "a": base["a"].view(3, 2)}, {**base, "a": base["a"].double()}, {**base, "b": torch.tensor(2.0)},
              {"c": base["a"], "b": base["b"]}]
    assert len({digest, *map(weights_digest, others)}) == 5


def test_compact_rows_come_back_and_others_share_the_mean() -> None:
    state = {"token_embedding.weight": torch.randn(50, 4), "x": torch.ones(2)}
    back = expand_rows(compact_rows(state, [3, 7, 7, 49]))
    assert back.keys() == state.keys()
    full, original = back["token_embedding.weight"], state["token_embedding.weight"]
    assert full.shape == (50, 4)
    for i in range(50):
        expected = original[i] if i in (3, 7, 49) else original[[3, 7, 49]].mean(dim=0)
        torch.testing.assert_close(full[i], expected)
    assert expand_rows(state) is state


def test_folder_and_its_weights_file_give_the_same_model(tmp_path: Path) -> None:
    torch.manual_seed(1)
    clip = build_clip(TINY_CLIP)
    digest = export_clip(clip, TINY_CLIP, {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}, tmp_path / "export")
    by_folder = load_clip(str(tmp_path / "export"))
    by_scheme = load_clip(f"local-dir:{tmp_path / 'export'}")
    assert digest == by_folder.digest == by_scheme.digest == weights_digest(clip.state_dict())
    assert by_folder.preprocess.mean == (0.1, 0.2, 0.3) and by_folder.preprocess.size == 16
    assert not by_folder.model.training
    assert by_folder.tokenizer(["a"]).shape == (1, 8)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ViT-B-32", "names no weights"),
        ("ViT-B-32:no_such_tag", "not a known tag"),
        ("ViT-B-32:/absent/file.pt", "not a known tag or valid file path"),
        ("local-dir:/absent", "open_clip_config.json does not exist"),
        ("NoSuchModel:random", "open_clip has no config"),
    ],
)
def test_what_cannot_be_loaded_says_how_to_name_a_local_file(spec: str, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message) as caught:
        load_clip(spec)
    assert "NAME:PATH" in str(caught.value) and spec in str(caught.value)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    export_clip(build_clip(TINY_CLIP), {**TINY_CLIP, "embed_dim": 24}, {}, tmp_path / "export")
    with pytest.raises(ModelLoadError, match="does not fit its config"):
        load_clip(str(tmp_path / "export"))


@pytest.mark.parametrize("data", [b"url,alt_text\nhttp://a.example/1.jpg,one\n", b""])
def test_a_file_that_holds_no_weights_is_named(tmp_path: Path, data: bytes) -> None:
    export_clip(build_clip(TINY_CLIP), TINY_CLIP, {}, tmp_path / "export")
    (tmp_path / "export" / "open_clip_model.safetensors").write_bytes(data)
    with pytest.raises(ModelLoadError, match="open_clip_model.safetensors cannot be read"):
        load_clip(str(tmp_path / "export"))
    (tmp_path / "weights.pt").write_bytes(data)
    with pytest.raises(ModelLoadError, match="weights.pt' could not be loaded"):
        load_clip(f"RN50:{tmp_path / 'weights.pt'}")


def test_local_checkpoint_by_name_and_path(tmp_path: Path) -> None:
    first = load_clip("RN50:random")
    torch.save(first.model.state_dict(), tmp_path / "weights.pt")
    second = load_clip(f"RN50:{tmp_path / 'weights.pt'}")
    assert second.digest == first.digest and second.preprocess.size == 224
    assert "random weights" in first.note and second.note == ""
