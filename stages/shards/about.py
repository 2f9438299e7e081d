"""What a dataset says of itself: name, description, licence, address, maker and date, as the recipe gives them."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

from pydantic import field_validator

from pipeline.stage import Params, decides

NO_LICENSE = "not stated: the rights of every image and text remain with their owners"
NO_CREATOR = "not stated"
NO_DATE = "1970-01-01"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]*")


class AboutParams(Params):
    """None of these decides a sample; a change rewrites README.md and croissant.json alone."""

    title: str | None = decides(None, "name of the dataset; default: that of the recipe")
    description: str | None = decides(None, "what the dataset is, in a sentence or more; default: how many pairs it has and where they came from")
    license: str | None = decides(None, "licence of the dataset: an address (https://spdx.org/licenses/CC-BY-4.0.html) or a name (CC-BY-4.0)")
    url: str | None = decides(None, "page of the dataset: an absolute address")
    creator: str | None = decides(None, "person or organization that made the dataset")
    date_published: datetime.date | None = decides(None, "date of publication, YYYY-MM-DD; never taken from the clock")
    cite_as: str | None = decides(None, "how to cite the dataset, BibTeX")

    @field_validator("title")
    @classmethod
    def _check_title(cls, title: str | None) -> str | None:
        if title is not None and not _NAME.fullmatch(title):
            raise ValueError(f"a name has letters, digits, blanks and . _ - only, and begins with a letter or digit; found {title!r}")
        return title

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"(https?|s3|gs|hf)://\S+", url):
            raise ValueError(f"must be an absolute address such as https://example.org/dataset, found {url!r}")
        return url


@dataclass(frozen=True)
class About:
    """The same with defaults filled in. `missing`: what the recipe did not give and a reader must not take for granted."""

    name: str
    description: str
    license: str
    url: str
    creator: str
    date_published: str
    cite_as: str
    missing: tuple[str, ...] = ()


def about(params: AboutParams, recipe: str, recipe_digest: str, pairs: int, rows: int) -> About:
    """Defaults depend on the recipe and the counts alone. `recipe_digest` names a dataset that has no page."""
    given = {name: getattr(params, name) for name in ("license", "url", "creator", "date_published", "description")}
    name = params.title or (re.sub(r"[^A-Za-z0-9 ._-]+", "_", recipe).lstrip(" ._-") or "dataset")
    return About(
        name=name,
        description=params.description or f"{pairs} image-text pairs, curated from {rows} rows of image addresses with alt-text by the recipe {name!r}.",
        license=params.license or NO_LICENSE,
        url=params.url or f"urn:x-pairmill:{recipe_digest}",
        creator=params.creator or NO_CREATOR,
        date_published=params.date_published.isoformat() if params.date_published else NO_DATE,
        cite_as=params.cite_as or f"@misc{{pairmill_{recipe_digest}, title={{{name}}}, howpublished={{made by pairmill, recipe {recipe_digest}}}}}",
        missing=tuple(name for name, value in given.items() if value is None),
    )
