"""Recall, zero-shot accuracy and AUC against loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.pretrain.data import ShardDataset
from stages.pretrain.errors import TrainError
from stages.pretrain.evaluate import (
    auc,
    class_embeddings,
    classification_accuracy,
    embed_images,
    embed_texts,
    eval_batches,
    evaluate_classification,
    evaluate_retrieval,
    retrieval_recall,
)
from stages.pretrain.trainer import train


def recall_by_loops(image_emb: np.ndarray, text_emb: np.ndarray, owner: list[int], k: int) -> tuple[float, float]:
    """Recall@k image to text and text to image, one similarity at a time."""
    hits = 0
    for i, image in enumerate(image_emb):
        ranked = sorted(range(len(owner)), key=lambda j: -float(np.dot(image, text_emb[j])))
        hits += any(owner[j] == i for j in ranked[:k])
    back = 0
    for j, text in enumerate(text_emb):
        ranked = sorted(range(len(image_emb)), key=lambda i: -float(np.dot(image_emb[i], text)))
        back += owner[j] in ranked[:k]
    return hits / len(image_emb), back / len(owner)


def unit(rng: np.random.Generator, rows: int, width: int = 6) -> np.ndarray:
    values = rng.normal(size=(rows, width))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_median_rank_counts_from_one_and_halves_between_two() -> None:
    images = torch.eye(4)
    near_first = torch.nn.functional.normalize(images[:1] + 0.5 * images, dim=-1)  # each text is nearest to image 0, then to its own
    found = retrieval_recall(images, torch.stack([images[0], near_first[1], near_first[2], images[3]]), range(4))
    assert found["text_to_image_median_rank"] == 1.5  # ranks 1, 2, 2, 1
    assert found["image_to_text_median_rank"] == 1.0


@pytest.mark.parametrize("images", [40, 1100])  # the second crosses a block
def test_recall_equals_loops_with_several_captions(images: int) -> None:
    rng = np.random.default_rng(images)
    image_emb = unit(rng, images)
    owner = [i for i in range(images) for _ in range(1 + i % 3)] if images < 100 else list(range(images))
    text_emb = image_emb[owner] + 0.4 * unit(rng, len(owner))
    text_emb /= np.linalg.norm(text_emb, axis=1, keepdims=True)
    found = retrieval_recall(torch.from_numpy(image_emb), torch.from_numpy(text_emb), owner)
    for k in (1, 5, 10) if images < 100 else (1,):
        expected = recall_by_loops(image_emb, text_emb, owner, k)
        assert (found[f"image_to_text_recall@{k}"], found[f"text_to_image_recall@{k}"]) == pytest.approx(expected)
    assert 0.1 < found["text_to_image_recall@1"] < 1.0


def test_a_model_that_says_the_same_of_everything_gets_no_recall() -> None:
    same = torch.ones(20, 4) / 2
    found = retrieval_recall(same, same, range(20), at=(1, 10))
    assert {value for name, value in found.items() if "recall" in name} == {0.0}
    assert {value for name, value in found.items() if "median_rank" in name} == {20.0}, "ties count as lost"


def test_image_without_text_is_refused() -> None:
    with pytest.raises(TrainError, match="image 1 .*has no text"):
        retrieval_recall(torch.eye(3), torch.eye(3), [0, 0, 2])


def test_accuracy_equals_loops() -> None:
    rng = np.random.default_rng(0)
    image_emb, class_emb, labels = unit(rng, 60), unit(rng, 9), rng.integers(0, 9, 60).tolist()
    found = classification_accuracy(torch.from_numpy(image_emb), torch.from_numpy(class_emb), labels)
    for k in (1, 5):
        hits = 0
        for image, label in zip(image_emb, labels, strict=True):
            ranked = sorted(range(9), key=lambda c: -float(np.dot(image, class_emb[c])))
            hits += label in ranked[:k]
        assert found[f"accuracy@{k}"] == pytest.approx(hits / 60)


def test_auc_equals_loops_and_counts_ties_half() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(2, 8, 50).tolist(), rng.integers(0, 6, 40).tolist()
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert auc(positive, negative) == pytest.approx(wins / 2000)


@pytest.fixture(scope="module")
def trained(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    from stages.models.open_clip_loader import load_clip
    from stages.pretrain.config import TrainConfig
    from stages.pretrain.objectives.base import TINY_CLIP

    config = TrainConfig(dataset=str(dataset_dir), model=TINY_CLIP, steps=60, batch_size=24, lr=3e-3, warmup=4,
                         threads=1, device="cpu", workers=0)
    return load_clip(train(config, tmp_path_factory.mktemp("trained")).export)


def test_class_embedding_is_the_mean_of_unit_template_embeddings(trained) -> None:
    templates = ["a {} square", "{}", "one {} thing"]
    found = class_embeddings(trained, ["red", "blue"], templates)
    for i, name in enumerate(("red", "blue")):
        total = np.zeros(16)
        for template in templates:
            tokens = trained.tokenizer([template.format(name)])
            embedding = trained.model.encode_text(tokens)[0].detach().double().numpy()
            total += embedding / np.linalg.norm(embedding)
        assert found[i].numpy() == pytest.approx(total / np.linalg.norm(total), abs=1e-5)
    with pytest.raises(TrainError, match="must hold exactly one"):
        class_embeddings(trained, ["red"], ["a photo"])


def test_retrieval_of_a_dataset_equals_its_embeddings(trained, dataset_dir: Path) -> None:
    found = evaluate_retrieval(trained, str(dataset_dir), all_texts=True, batch_size=7)
    data = ShardDataset(dataset_dir)
    image_emb = embed_images(trained, eval_batches(trained, data, batch_size=24)).double().numpy()
    texts = [(i, text) for i in range(24) for text in data.texts(i)]
    text_emb = embed_texts(trained, [text for _, text in texts]).double().numpy()
    expected = recall_by_loops(image_emb, text_emb, [i for i, _ in texts], 5)
    assert (found["image_to_text_recall@5"], found["text_to_image_recall@5"]) == pytest.approx(expected)
    assert (found["images"], found["texts"], found["weights_digest"]) == (24, 48, trained.digest)


def test_classification_of_colours_beats_chance(trained, dataset_dir: Path) -> None:
    data = ShardDataset(dataset_dir)
    classes = ["red", "green", "blue", "yellow"]
    labels = [classes.index(data.caption(i).split()[1]) for i in range(len(data))]
    found = evaluate_classification(trained, data, labels, classes, ["a {} square", "{} thing"])
    assert found["accuracy@1"] > 0.6 and found["images"] == 24
