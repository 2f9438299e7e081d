"""What is written beside data to say what produced it: run.json and the footers of part files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = 1
FOOTER_KEY = b"pairmill"


@dataclass
class RunRecord:
    """run.json: the resolved recipe, the code version and the list of parts (row count per part).

    stops: each time a failure budget stopped the run: stage, code, why, when (`at`, seconds since 1970), when the computing of the part
    that broke it had begun, and how many rows of earlier parts were among those judged (`reach`).
    probe: what `plan --probe` last estimated for this run, told to people; {} where there was none.
    """

    run_id: str
    code_version: str
    recipe: dict[str, Any]
    source_fingerprint: str
    parts: list[int] = field(default_factory=list)
    stops: list[dict[str, Any]] = field(default_factory=list)
    probe: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        data = json.loads(text)
        if data.get("format") != FORMAT:
            raise ValueError(f"run.json has format {data.get('format')}, this pairmill reads format {FORMAT}")
        return cls(**data)


@dataclass
class PartRecord:
    """Footer of a part file: what produced it (fingerprint), what it was made from (inputs), and its own digest.

    kind: 'values', 'verdicts' or 'resolved'. Only `digest` and `inputs` decide validity; `info` (seconds, host,
    attempt, versions, counts of calls) is told to people and stands outside every digest.
    """

    kind: str
    stage: str
    part: int
    rows: int
    fingerprint: str = ""
    inputs: str = ""
    digest: str = ""
    values_digest: str = ""
    side_files: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_metadata(cls, metadata: dict[bytes, bytes] | None, path: str) -> PartRecord:
        """Raises ValueError when the file was not written by pairmill or by another format of it."""
        raw = (metadata or {}).get(FOOTER_KEY)
        if raw is None:
            raise ValueError(f"{path}: no pairmill record in its footer; the file was not written by pairmill")
        data = json.loads(raw)
        if data.get("format") != FORMAT:
            raise ValueError(f"{path}: format {data.get('format')}, this pairmill reads format {FORMAT}")
        return cls(**data)
