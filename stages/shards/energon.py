"""What Megatron-Energon needs beside the tars: the folder `.nv-meta` and, for each tar, the offsets of its samples.

Formats: megatron-energon 7.4, `flavors/webdataset` (structs.py, itar.py) and `flavors/captioning.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import yaml

from pipeline.blobs import BLOCK, TAR_END
from schemas.dataset import CAPTION_EXTENSION, IMAGE_EXTENSIONS, Split

FOLDER = ".nv-meta"
_OWN_SPLITS = ("train", "val", "test")  # its linter asks for these, empty or not


def tar_offsets(images: Sequence[int], tar_bytes: int) -> bytes:
    """Content of `<shard>.tar.idx`: where each sample begins, and where the last one ends; uint64, little-endian [N + 1].

    images: offset of the image of each sample [N]; the image is the sample's first member, behind a header of one block.
    """
    return np.array([*(offset - BLOCK for offset in images), tar_bytes - len(TAR_END)], "<u8").tobytes()


def energon_files(splits: dict[str, Split]) -> dict[str, bytes]:
    """Name in the dataset -> content of the files of `.nv-meta`."""
    counts = dict(sorted((shard.tar, shard.samples) for split in splits.values() for shard in split.shards))
    parts = {name: [shard.tar for shard in splits[name].shards] if name in splits else [] for name in dict.fromkeys((*_OWN_SPLITS, *sorted(splits)))}
    sample = {
        "sample_type": {"__module__": "megatron.energon", "__class__": "CaptioningSample"},
        "field_map": {"image": ",".join(IMAGE_EXTENSIONS), "caption": CAPTION_EXTENSION},
    }
    return {
        f"{FOLDER}/.info.json": (json.dumps({"shard_counts": counts}, indent=1) + "\n").encode(),
        f"{FOLDER}/dataset.yaml": yaml.safe_dump(sample, sort_keys=False).encode(),
        f"{FOLDER}/split.yaml": yaml.safe_dump({"split_parts": parts, "exclude": []}, sort_keys=False).encode(),
    }
