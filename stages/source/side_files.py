"""Texts and fields that stand beside an image: a text with one caption or one per line, and a JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from schemas.outcome import FailureCode
from stages.source.local_rows import LocalParams, LocalRow, lines_of, plain_text

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif")
TEXT_BYTES = 1 << 20  # of a text that are read; the rest is cut, and alt_text_cut says so
JSON_BYTES = 4 << 20  # of the largest .json that is read


class SideFileParams(LocalParams):
    """What stands beside an image, and what of it becomes the caption."""

    image: tuple[str, ...] = Field(IMAGE_EXTENSIONS, description="extensions of images, in lower case")
    caption: str | None = Field("txt", description="extension of the file (member) with the caption; null: none")
    lines: bool = Field(False, description="each line of it is a caption of its own")
    caption_field: str | None = Field("caption", description="field of the .json with the caption, used where there is no caption file; null: none")
    texts_field: str | None = Field(None, description="field of the .json with a list of further texts (strings, or objects with `text`)")
    url_field: str | None = Field("url", description="field of the .json with the URL that the image came from; null: none")

    @field_validator("image", "caption")
    @classmethod
    def _plain_extensions(cls, value: Any) -> Any:
        """'.JPG' means jpg."""
        if isinstance(value, tuple):
            return tuple(extension.lower().removeprefix(".") for extension in value)
        return value.lower().removeprefix(".") if value else None

    @property
    def many_texts(self) -> bool:
        return self.lines or self.texts_field is not None

    def bytes_wanted(self, extension: str) -> int:
        """How much is read of a file beside an image; 0: it is of no use."""
        return TEXT_BYTES if extension == self.caption else JSON_BYTES + 1 if extension == "json" else 0

    def fill(self, row: LocalRow, caption: bytes | None, record: bytes | None, record_name: str) -> None:
        """Texts, URL and carried fields of a row. What is no JSON object fails it (bad_row)."""
        fields: dict[str, Any] = {}
        try:
            fields = {} if record is None else _object(record)
        except (ValueError, RecursionError) as error:
            if row.code is None:
                row.code, row.detail = FailureCode.BAD_ROW, f"{record_name}: {error}"
        row.texts = self._texts(caption, fields)
        url = fields.get(self.url_field) if self.url_field else None
        row.url = url if isinstance(url, str) and url.strip() else None
        own = (self.caption_field, self.texts_field, self.url_field)
        row.fields = {**row.fields, **{name: value for name, value in fields.items() if name not in own}}

    def _texts(self, caption: bytes | None, fields: Mapping[str, Any]) -> list[str | Mapping[str, Any]]:
        texts: list[str | Mapping[str, Any]] = []
        if caption is not None:
            text = plain_text(caption)
            texts += lines_of(text) if self.lines else [text]
        elif self.caption_field and isinstance(found := fields.get(self.caption_field), str):
            texts.append(found)
        further = fields.get(self.texts_field) if self.texts_field else None
        return texts + ([text for text in further if isinstance(text, str | dict)] if isinstance(further, list) else [])


def _object(record: bytes) -> dict[str, Any]:
    if len(record) > JSON_BYTES:
        raise ValueError(f"more than {JSON_BYTES} bytes")
    found = json.loads(record)
    if not isinstance(found, dict):
        raise ValueError(f"a JSON {type(found).__name__}, not an object")
    return found
