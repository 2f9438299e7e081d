"""What stages that ask a multimodal language model about images have in common: pictures scaled on the CPU, requests, seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from pydantic import Field

from pipeline.errors import Fatal, RecipeError
from pipeline.stage import Context, Params, Row, Stage, Values, tunes
from schemas.outcome import Failure, FailureCode
from stages import prompts
from stages.images.decoders import DecoderLimits, shared_decoders
from stages.models.protocols import ChatAnswer, ChatRequest, Sampling, image_digest
from stages.prompts import Prompt
from stages.prompts.data_text import as_data

TEXT = "texts|text|alt_text"


class ChatParams(Params):
    """Parameters of every stage that asks a model about images."""

    model: str = Field("mllm", description="name of a model of kind vllm, transformers, http or fake in the recipe's models table")
    max_text_chars: int = Field(2000, description="characters of a text from outside that go into a prompt; longer ones are cut", ge=1)
    decoders: int | None = tunes(None, "decoder processes per worker; null: its share of the cores, at most 8", ge=1)


class ChatStage(Stage):
    """Asks `prompts_used` about each row's image, in this order: one request each, behind the same system text and image."""

    params: ChatParams
    batch_size = 64
    model_method = "chat"
    asks_each = True
    decodes_images = True
    seconds_per_row = 0.2

    @property
    def prompts_used(self) -> list[Prompt]:
        """The prompts, each asked once per row."""
        raise NotImplementedError

    def sampling(self, row: Row, ctx: Context) -> Sampling:
        """How the answers about a row are drawn."""
        raise NotImplementedError

    def prompt_fields(self, row: Row) -> dict[str, str] | None:
        """Values of the prompts' fields; None where there is nothing to ask."""
        raise NotImplementedError

    def values(self, row: Row, answers: list[ChatAnswer], ctx: Context) -> Values | Failure:
        """Values of a row from the answers to its prompts; `answers` is empty where nothing was asked."""
        raise NotImplementedError

    def compute_facts(self) -> Any:
        """The wording of the prompts: a changed one makes its answers anew."""
        return [[prompt.name, prompt.version, prompt.system, prompt.user] for prompt in self.prompts_used]

    def prepare(self, rows: Sequence[Row], ctx: Context) -> list[ChatRequest | Failure | None]:
        """One request per row and prompt. Images (uint8 [H, W, 3]) are decoded and scaled to the model's pixel cap in the sandbox."""
        if ctx.model is None:
            raise Fatal(f"{self.instance}: no model {self.params.model!r} at hand; name it in the recipe's models table")
        used = self.prompts_used
        max_pixels = int(ctx.model.describe()["max_pixels"])
        given = [self.prompt_fields(row) for row in rows]
        requests: list[ChatRequest | Failure | None] = []
        for row, fields, pixels in zip(rows, given, self._pixels(rows, given, max_pixels, ctx), strict=True):
            if fields is None or isinstance(pixels, Failure):
                requests += [None if fields is None else pixels] * len(used)  # type: ignore[list-item]
                continue
            data = {name: as_data(text, self.params.max_text_chars) for name, text in fields.items()}
            sampling, digest = self.sampling(row, ctx), image_digest(pixels)
            requests += [
                ChatRequest(prompt.system, prompt.render(**{name: data[name] for name in prompt.fields}), pixels, digest, sampling) for prompt in used
            ]
        return requests

    def _pixels(self, rows: Sequence[Row], given: list[dict[str, str] | None], max_pixels: int, ctx: Context) -> list[np.ndarray | Failure]:
        """Pixels of each row, taken from the stage before where it has seen the same images."""
        decoders = shared_decoders(DecoderLimits(self.params.decoders), ctx.workers)
        waiting: dict[Any, Future[np.ndarray | Failure]] = {}
        keys = [None if row["image"] is None or fields is None else (*row["image"].place, max_pixels) for row, fields in zip(rows, given, strict=True)]
        for key, row in zip(keys, rows, strict=True):
            if key is not None and key not in ctx.shared and key not in waiting:
                waiting[key] = decoders.fit(row["image"].read(), max_pixels)
        ctx.shared.update((key, future.result()) for key, future in waiting.items())
        return [Failure(FailureCode.BAD_ROW, "the row has no stored image") if key is None else ctx.shared[key] for key in keys]

    def finish(self, rows: Sequence[Row], answer: Any, ctx: Context) -> list[Values | Failure]:
        """A row with a failed request fails; the others get the stage's values."""
        count = len(self.prompts_used)
        results: list[Values | Failure] = []
        for at, row in enumerate(rows):
            own = answer[at * count : (at + 1) * count]
            failed = next((one for one in own if isinstance(one, Failure)), None)
            results.append(failed or self.values(row, [one for one in own if one is not None], ctx))
        return results


def best_text(row: Row) -> str | None:
    """The best of a row's texts (the first, once they are ranked), read as TEXT; None where it has none."""
    given = row["texts"]
    texts = [given] if isinstance(given, str) else [entry["text"] for entry in given or ()]
    return next((text for text in texts if text and text.strip()), None)


def seed_of(row: Row, instance: str, seed: int) -> int:
    """Seed of a row's answers (32 bits): a hash of the recipe's seed, the stage's name and the row's id."""
    return int.from_bytes(hashlib.sha256(f"{seed} {instance} ".encode() + row["sample_id"]).digest()[:4], "little")


def load_prompt(name: str, where: str) -> Prompt:
    """A prompt that comes with pairmill. Raises RecipeError that names the parameter."""
    try:
        return prompts.load(name)
    except prompts.PromptError as error:
        raise RecipeError(f"{where}: {error}") from error
