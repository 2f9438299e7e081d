"""Zero-shot evaluation: retrieval both ways, and classification with prompt templates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from stages.models.open_clip_loader import LoadedClip
from stages.pretrain.data import Samples, ShardDataset
from stages.pretrain.errors import TrainError
from stages.pretrain.loader import Views, read_sample
from stages.pretrain.objectives.base import Needs, normalise

RECALL_AT = (1, 5, 10)


def retrieval_recall(
    image_emb: torch.Tensor, text_emb: torch.Tensor, text_image: Sequence[int], at: Sequence[int] = RECALL_AT,
) -> dict[str, float]:
    """Recall@k both ways from unit embeddings.

    `image_emb` [N, C]; `text_emb` [M, C]; `text_image` [M]: the image each text belongs to (several per image allowed).
    Image to text: the share of images with one of their own texts among the k nearest; text to image: the share of
    texts with their image among the k nearest (the protocol of Karpathy's splits, CLIP section 3.1.5). The median rank is
    that of the nearest own item, counted from 1. A tie counts
    against the model: an item ranks behind every wrong one with the same similarity.

    Raises TrainError if an image has no text.
    """
    owner = torch.as_tensor(text_image, device=text_emb.device)
    count = len(image_emb)
    missing = sorted(set(range(count)) - set(owner.tolist()))
    if missing:
        raise TrainError(f"image {missing[0]} (of {len(missing)}) has no text: recall is not defined")
    image_rank = torch.full((count,), torch.iinfo(torch.int64).max)
    text_rank = torch.empty(len(owner), dtype=torch.int64)
    everyone = torch.arange(count, device=owner.device)
    for first in range(0, count, 1024):  # blocks bound the memory: 1,024 x M similarities
        similarity = image_emb[first:first + 1024] @ text_emb.T
        own = owner[None, :] == everyone[first:first + 1024, None]
        best_own = similarity.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        ahead = ((similarity >= best_own) & ~own).sum(dim=1)
        image_rank[first:first + 1024] = ahead.cpu()
    for first in range(0, len(owner), 1024):
        similarity = text_emb[first:first + 1024] @ image_emb.T
        mine = owner[first:first + 1024]
        own_similarity = similarity.gather(1, mine[:, None])
        other = everyone[None, :] != mine[:, None]
        text_rank[first:first + 1024] = ((similarity >= own_similarity) & other).sum(dim=1).cpu()
    return {
        **{f"image_to_text_recall@{k}": float((image_rank < k).double().mean()) for k in at},
        **{f"text_to_image_recall@{k}": float((text_rank < k).double().mean()) for k in at},
        "image_to_text_median_rank": float(np.median(image_rank.numpy())) + 1,
        "text_to_image_median_rank": float(np.median(text_rank.numpy())) + 1,
    }


def class_embeddings(clip: LoadedClip, classes: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """One unit embedding per class, [K, C]: the mean of the unit embeddings of all templates, made unit again.

    A template holds one `{}` for the class name (CLIP, section 3.1.4).
    Raises TrainError for a template without it.
    """
    bad = [template for template in templates if template.count("{}") != 1]
    if bad:
        raise TrainError(f"template {bad[0]!r} must hold exactly one {{}} for the class name")
    texts = [template.format(name) for name in classes for template in templates]
    emb = embed_texts(clip, texts).view(len(classes), len(templates), -1)
    return F.normalize(emb.mean(dim=1), dim=-1)


def classification_accuracy(
    image_emb: torch.Tensor, class_emb: torch.Tensor, labels: Sequence[int], at: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """Top-k accuracy of nearest class embeddings. `image_emb` [N, C], `class_emb` [K, C], `labels` [N]."""
    target = torch.as_tensor(labels, device=image_emb.device)
    order = (image_emb @ class_emb.T).argsort(dim=1, descending=True, stable=True)
    hit = order == target[:, None]
    return {f"accuracy@{k}": float(hit[:, :k].any(dim=1).double().mean()) for k in at if k <= class_emb.shape[0]}


@torch.inference_mode()
def embed_texts(clip: LoadedClip, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
    """Unit text embeddings, float32 [N, C]."""
    device = next(clip.model.parameters()).device
    parts = [
        clip.model.encode_text(clip.tokenizer(texts[first:first + batch_size]).to(device), normalize=True).float().cpu()
        for first in range(0, len(texts), batch_size)
    ]
    return torch.cat(parts)


@torch.inference_mode()
def embed_images(clip: LoadedClip, views: Iterable[np.ndarray]) -> torch.Tensor:
    """Unit image embeddings, float32 [N, C], from batches of uint8 [B, S, S, 3] at the model's size."""
    device = next(clip.model.parameters()).device
    parts = []
    for batch in views:
        images = normalise(
            {"images": torch.from_numpy(batch).to(device)}, clip.preprocess.mean, clip.preprocess.std
        )["images"]
        parts.append(clip.model.encode_image(images, normalize=True).float().cpu())
    return torch.cat(parts)


def eval_batches(clip: LoadedClip, samples: Samples, batch_size: int = 256, workers: int = 2) -> Iterator[np.ndarray]:
    """The evaluation view of all samples in order, uint8 [B, S, S, 3] each. Raises DataError for a damaged one."""
    views = Views(clip.preprocess.size, clip.preprocess.interpolation, clip.preprocess.resize_mode)
    needs = Needs(columns=(), views=("eval",))

    def read(index: int) -> np.ndarray:
        return read_sample(samples, index, 0, 0, needs, views).views["eval"]

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for first in range(0, len(samples), batch_size):
            yield np.stack(list(pool.map(read, range(first, min(first + batch_size, len(samples))))))


def evaluate_retrieval(
    clip: LoadedClip, samples: Samples | str, split: str = "train", all_texts: bool = False, batch_size: int = 256,
    workers: int = 2,
) -> dict[str, Any]:
    """Recall@1, 5 and 10 both ways over all pairs of a dataset folder (or samples in memory).

    `all_texts`: every text of a sample is its caption, else only the chosen one. Returns the recalls, the numbers of
    images and texts, and the digest of the weights.
    """
    data = ShardDataset(samples, split) if isinstance(samples, str) else samples
    groups = [data.texts(i) if all_texts else [data.caption(i)] for i in range(len(data))]
    owner = [i for i, group in enumerate(groups) for _ in group]
    text_emb = embed_texts(clip, [text for group in groups for text in group], batch_size)
    image_emb = embed_images(clip, eval_batches(clip, data, batch_size, workers))
    return {
        **retrieval_recall(image_emb, text_emb, owner), "images": len(data), "texts": len(owner), "model": clip.name,
        "weights_digest": clip.digest,
    }


def evaluate_classification(
    clip: LoadedClip, samples: Samples, labels: Sequence[int], classes: Sequence[str], templates: Sequence[str],
) -> dict[str, Any]:
    """Zero-shot top-1 and top-5 accuracy of samples whose classes are `labels` (indices into `classes`)."""
    image_emb = embed_images(clip, eval_batches(clip, samples))
    accuracy = classification_accuracy(image_emb, class_embeddings(clip, classes, templates), labels)
    return {**accuracy, "images": len(samples), "classes": len(classes), "weights_digest": clip.digest}


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """The probability that a positive scores above a negative, ties counting half (Mann-Whitney)."""
    scores = np.concatenate([np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)])
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    wins = mean_rank[place[:len(positive)]].sum() - len(positive) * (len(positive) + 1) / 2
    return float(wins / (len(positive) * len(negative)))
