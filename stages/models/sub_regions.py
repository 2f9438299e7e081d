"""Sub-regions of an image in a CLIP's joint space: what lies around the patches that the whole image's embedding looks at most.

MacCap (Qiu et al. 2024, arXiv 2401.02347), its released code. B images, P patches, K sub-regions, C embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

NO_PATCHES = "shows no attention over patches: sub-regions need open_clip's own VisionTransformer with a class token, or its ModifiedResNet"


@dataclass(slots=True)
class SubRegions:
    """`image` [B, C] and `regions` [B, K, C], of unit length; `weights` [B, K, P]: of which patches a sub-region is made, each row sums to 1."""

    image: torch.Tensor
    regions: torch.Tensor
    weights: torch.Tensor


def patch_count(visual: Any) -> int:
    """Patches of an image in a CLIP's image tower, 0 where the tower shows none."""
    if _is_resnet(visual):
        return visual.attnpool.positional_embedding.shape[0] - 1
    return visual.positional_embedding.shape[0] - 1 if _is_vit(visual) else 0


def sub_regions(visual: Any, images: torch.Tensor, count: int) -> SubRegions:
    """Embeddings of images, float [B, 3, S, S] as the tower takes them, and of their `count` sub-regions (all patches' where there are fewer).

    The centre of a sub-region is a patch with much attention of the class token (of the mean, in a ModifiedResNet); it is the mean of all patches in
    the joint space, weighted by the centre's own attention. Attention is the last layer's, mean over its heads. Raises ValueError for other towers.
    """
    if _is_resnet(visual):
        image, patches, attention = _of_resnet(visual, images)
    elif _is_vit(visual):
        image, patches, attention = _of_vit(visual, images)
    else:
        raise ValueError(f"{type(visual).__name__} {NO_PATCHES}")
    centres = attention[:, 0, 1:].topk(min(count, patches.shape[1]), dim=1).indices
    rows = attention[:, 1:, 1:].gather(1, centres[:, :, None].expand(-1, -1, patches.shape[1]))
    weights = rows / rows.sum(-1, keepdim=True)
    return SubRegions(F.normalize(image, dim=-1), F.normalize(weights @ patches, dim=-1), weights)


def _is_resnet(visual: Any) -> bool:
    return hasattr(visual, "attnpool") and hasattr(visual.attnpool, "c_proj")


def _is_vit(visual: Any) -> bool:
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    plain = getattr(visual, "pool_type", "") == "tok" and getattr(visual, "attn_pool", None) is None and getattr(visual, "proj", None) is not None
    return bool(blocks) and plain and isinstance(getattr(blocks[-1], "attn", None), nn.MultiheadAttention)


def _of_resnet(visual: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embedding [B, C], patches in the joint space [B, P, C], attention [B, 1 + P, 1 + P]: the pool asked from every place, not from the mean alone."""
    pool = visual.attnpool
    with _kept(pool) as seen:
        visual(images)
    grid = seen["in"].flatten(2).permute(2, 0, 1)
    places = torch.cat([grid.mean(dim=0, keepdim=True), grid]) + pool.positional_embedding[:, None].to(grid.dtype)
    out, attention = F.multi_head_attention_forward(
        query=places, key=places, value=places, embed_dim_to_check=places.shape[-1], num_heads=pool.num_heads,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight, in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight, out_proj_bias=pool.c_proj.bias, use_separate_proj_weight=True, training=False, need_weights=True,
    )  # fmt: skip
    assert attention is not None
    return out[0], out[1:].transpose(0, 1), attention


def _of_vit(visual: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `_of_resnet`, of the last block."""
    block = visual.transformer.resblocks[-1]
    with _kept(block) as seen:
        image = visual(images)
    before = block.ln_1(seen["in"])
    _, attention = block.attn(before, before, before, need_weights=True)
    after = seen["out"] if visual.transformer.batch_first else seen["out"].transpose(0, 1)
    return image, visual.ln_post(after[:, 1:]) @ visual.proj, attention


@contextmanager
def _kept(module: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """What goes into a module and comes out of it within the block."""
    seen: dict[str, torch.Tensor] = {}

    def keep(_: nn.Module, given: tuple[Any, ...], options: dict[str, Any], out: torch.Tensor) -> None:
        seen.update({"in": given[0] if given else next(iter(options.values())), "out": out})

    hook = module.register_forward_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()
