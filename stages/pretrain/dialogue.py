"""Many questions about one image in one sequence, each as if it had been asked alone.

System text and image stand once; behind them every turn is a branch that sees them and itself but no other turn, at the
positions it would have alone. So one encoding of the image serves all its turns, and the model learns exactly the requests
that it is asked later. Turns that put the same text to different criteria share that text as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stages import prompts
from stages.pretrain.errors import DataError

ROOT = 0
IGNORED = -100
NOWHERE = 9
"""Cell of an object that does not exist; 0 to 8 are those of the scenes' 3 x 3 grid."""


@dataclass(frozen=True)
class Turn:
    """One request and its answer. `claims`: (start, end, true, cell) of statements in the text between the prompt's marks, in
    characters; `cell` is where the object stands that is meant, NOWHERE where there is none, -1 where none is meant."""

    prompt: str
    answer: str
    fields: dict[str, str] = field(default_factory=dict)
    claims: tuple[tuple[int, int, bool, int], ...] = ()


@dataclass(frozen=True)
class Dialogue:
    """What one sample's text holds: the turns about its image, and classes of its image tokens (head name -> P ids)."""

    turns: tuple[Turn, ...] = ()
    image_labels: dict[str, list[int]] = field(default_factory=dict)

    def to_json(self) -> str:
        turns = [{"prompt": t.prompt, "answer": t.answer, "fields": t.fields, "claims": t.claims} for t in self.turns]
        return json.dumps({"turns": turns, "image_labels": self.image_labels})

    @classmethod
    def from_json(cls, text: str, key: str) -> Dialogue:
        """Read what `to_json` wrote. Raises DataError with the sample's key for anything else."""
        try:
            found = json.loads(text)
            turns = tuple(
                Turn(t["prompt"], t["answer"], t.get("fields", {}), tuple((a, b, bool(c), int(d)) for a, b, c, d in t.get("claims", ())))
                for t in found["turns"]
            )
            return cls(turns, found.get("image_labels", {}))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"sample {key}: its text is no dialogue (JSON with 'turns' of prompt and answer): {error!r}") from error


@dataclass
class Laid:
    """A dialogue as arrays of length L. `targets` is the token to be predicted behind each token, -100 where none counts."""

    tokens: np.ndarray  # int64 [L]
    positions: np.ndarray  # int64 [3, L]: time, height, width
    targets: np.ndarray  # int64 [L]
    weights: np.ndarray  # float32 [L], of the targets
    claims: np.ndarray  # float32 [L]: 1 true, 0 false, -1 none
    claim_places: np.ndarray  # int64 [L]: cell of the object that a claim means, -1 none
    visible: np.ndarray  # bool [L, L]: row sees column


class DialogueLayout:
    """Lays dialogues out for one tokenizer and one image size (`side` image tokens per side).

    `length_power` p weights each token of an answer of n tokens by n ** -p: 0 counts tokens, 1 counts answers. Without
    `system_text` requests begin with the user's turn.
    """

    def __init__(self, tokenizer: Any, side: int, length_power: float, system_text: bool = True) -> None:
        from stages.pretrain.nets.word_tokenizer import IMAGE

        self._tokenizer, self._side, self._power, self._with_system = tokenizer, side, length_power, system_text
        self._cache: dict[str, list[int]] = {}
        self._image = tokenizer.convert_tokens_to_ids(IMAGE)

    def lay(self, turns: Sequence[Turn]) -> Laid:
        """All turns behind one image; with no turns, system text and image alone."""
        tree = _Tree(self._side)
        system = f"<|im_start|>system\n{self._system(turns)}<|im_end|>\n" if self._with_system else ""
        tree.add_root(self._ids(f"{system}<|im_start|>user\n<|vision_start|>"), self._image, self._ids("<|vision_end|>"))
        heads: dict[str, int] = {}
        for turn in turns:
            user = prompts.load(turn.prompt).render(**turn.fields)
            cut = user.rfind(prompts.CLOSING) + len(prompts.CLOSING) if prompts.CLOSING in user else 0
            head, tail = user[:cut], user[cut:]
            if head and head not in heads:
                heads[head] = tree.add(ROOT, self._encode(head), claims=self._claims(head, turn))
            parent = heads[head] if head else ROOT
            asked = self._ids(f"{tail}<|im_end|>\n<|im_start|>assistant\n")
            answer = self._encode(f"{turn.answer}<|im_end|>")
            tree.add(parent, asked + answer, answer=len(answer), weight=len(answer) ** -self._power)
        return tree.finish()

    def request(self, turn: Turn) -> list[int]:
        """Token ids of the turn alone, up to where the answer begins, with every image placeholder."""
        laid = self.lay([turn])
        first = int((laid.targets != IGNORED).argmax())
        return laid.tokens[:first + 1].tolist()

    @staticmethod
    def _system(turns: Sequence[Turn]) -> str:
        return prompts.load(turns[0].prompt if turns else prompts.names()[0]).system

    def _ids(self, text: str) -> list[int]:
        """Token ids of a text that occurs in many samples."""
        if text not in self._cache:
            self._cache[text] = self._encode(text)
        return self._cache[text]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _claims(self, head: str, turn: Turn) -> dict[int, tuple[bool, int]]:
        """Index of the last token of each claim -> whether it is true, and where what it means stands."""
        if not turn.claims:
            return {}
        offset = head.index(prompts.OPENING) + len(prompts.OPENING) + 1
        spans = self._tokenizer(head, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        ends = {end: number for number, (_, end) in enumerate(spans)}
        found = {ends.get(offset + end): (true, cell) for _, end, true, cell in turn.claims}
        return {number: what for number, what in found.items() if number is not None}


class _Tree:
    """Segments of tokens, each behind its parent; the root holds the image."""

    def __init__(self, side: int) -> None:
        self._side = side
        self._parents: list[int] = []
        self._ends: list[int] = []  # the position behind each segment
        self._tokens: list[list[int]] = []
        self._positions: list[np.ndarray] = []
        self._targets: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []
        self._claims: list[np.ndarray] = []
        self._claim_places: list[np.ndarray] = []

    def add_root(self, before: list[int], image: int, after: list[int]) -> None:
        """System text, image, and what closes it. The image takes as many positions as it is tokens wide (Qwen2-VL's M-RoPE)."""
        side, first = self._side, len(before)
        rows, columns = np.divmod(np.arange(side * side), side)
        text = np.arange(first)[None].repeat(3, axis=0)
        picture = np.stack([np.full(side * side, first), first + rows, first + columns])
        behind = np.arange(len(after))[None].repeat(3, axis=0) + first + side
        self._append(-1, before + [image] * side * side + after, np.concatenate([text, picture, behind], axis=1), first + side + len(after))

    def add(self, parent: int, tokens: list[int], answer: int = 0, weight: float = 0.0, claims: dict[int, tuple[bool, int]] | None = None) -> int:
        """A segment behind `parent`, the last `answer` tokens of which are to be learned; returns its number."""
        start = self._ends[parent]
        positions = (start + np.arange(len(tokens)))[None].repeat(3, axis=0)
        number = self._append(parent, tokens, positions, start + len(tokens))
        if answer:
            self._targets[number][-answer - 1:-1] = tokens[-answer:]
            self._weights[number][-answer - 1:-1] = weight
        for place, (true, cell) in (claims or {}).items():
            self._claims[number][place], self._claim_places[number][place] = float(true), cell
        return number

    def _append(self, parent: int, tokens: list[int], positions: np.ndarray, end: int) -> int:
        self._parents.append(parent)
        self._ends.append(end)
        self._tokens.append(tokens)
        self._positions.append(positions)
        self._targets.append(np.full(len(tokens), IGNORED, dtype=np.int64))
        self._weights.append(np.zeros(len(tokens), dtype=np.float32))
        self._claims.append(np.full(len(tokens), -1.0, dtype=np.float32))
        self._claim_places.append(np.full(len(tokens), -1, dtype=np.int64))
        return len(self._parents) - 1

    def finish(self) -> Laid:
        count = len(self._parents)
        above = np.eye(count, dtype=bool)
        for number, parent in enumerate(self._parents):
            if parent >= 0:
                above[number] |= above[parent]
        segment = np.repeat(np.arange(count), [len(tokens) for tokens in self._tokens])
        order = np.arange(len(segment))
        return Laid(
            tokens=np.concatenate(self._tokens), positions=np.concatenate(self._positions, axis=1),
            targets=np.concatenate(self._targets), weights=np.concatenate(self._weights), claims=np.concatenate(self._claims),
            claim_places=np.concatenate(self._claim_places),
            visible=above[segment][:, segment] & (order[None] <= order[:, None]),
        )
