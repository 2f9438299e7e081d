from __future__ import annotations

import math

import pytest

from stages.text.measures import (
    Boilerplate,
    emoji_count,
    is_file_name,
    letter_share,
    measure,
    repeated_share,
    tokens,
    url_share,
    word_entropy,
)
from stages.text_rules import _boilerplate

STOCK = _boilerplate(None, "")


@pytest.mark.parametrize(
    "text",
    [
        "IMG_1234.JPG",
        "dsc01234",
        "DSC_0042 (2).jpeg",
        "000.jpg",
        "photo of my dog.png",
        "Copy of picture 33 (1).jpg",
        "image.webp?w=300",
        "Screenshot 2019-01-02 at 10.20",
        "d41d8cd98f00b204e9800998ecf8427e",
        "123e4567-e89b-12d3-a456-426614174000",
        "18302_red-shoe_n",
        "1234567890",
        "red_shoe_42",
        "WhatsApp Image 2020-01-01 at 10.10.10",
    ],
)
def test_file_names(text: str) -> None:
    assert is_file_name(text)


@pytest.mark.parametrize(
    "text",
    [
        "a red shoe",
        "iPhone 12",
        "state-of-the-art camera",
        "Boeing 747-400",
        "U2",
        "decade",
        "photo of 3 dogs",
        "version 2.0",
        "T-shirt",
        "2019",
    ],
)
def test_captions_that_are_no_file_names(text: str) -> None:
    assert not is_file_name(text)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("https://a.example/b.jpg", 1.0),
        ("www.example.com/x", 1.0),
        ("see example.com", 11 / 14),
        ("a dog. Next sentence", 0.0),
        ("U.S. flag", 0.0),
        ("mail me@example.com", 0.0),
        ("no", 0.0),
        ("", 0.0),
    ],
)
def test_share_of_urls(text: str, share: float) -> None:
    assert url_share(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("plain", 0),
        ("dog \U0001f436", 1),
        ("\u2764\ufe0f love", 1),
        ("\u2b50 star \u2605", 1),
        ("\u00a9 2020 \u2122", 0),
        ("\U0001f1e9\U0001f1ea", 2),
    ],
)
def test_emoji(text: str, count: int) -> None:
    assert emoji_count(text) == count


@pytest.mark.parametrize(
    ("text", "dominated"),
    [
        ("Click here to enlarge image", True),
        ("no image available for product 123", True),
        ("image", True),
        ("logo 2", True),
        ("Add to cart!", True),
        ("Royalty-free stock photo", True),
        ("暂无图片", True),
        ("logo of a bakery", False),
        ("photo of a dog", False),
        ("a dog in the image", False),
        ("imagine a place", False),
        ("red wooden chair by the window, stock photo", False),
        ("12345", False),
    ],
)
def test_boilerplate(text: str, dominated: bool) -> None:
    assert (STOCK.share(text) > 0.7) is dominated


def test_boilerplate_is_matched_on_word_boundaries_only() -> None:
    stock = Boilerplate(["buy now"])
    assert (stock.share("Buy  now".replace("  ", " ")), stock.share("rebuy nowhere")) == (1.0, 0.0)
    assert stock.share("buy now shoes") == pytest.approx(6 / 11)


def test_tokens_count_each_character_of_scripts_without_spaces() -> None:
    assert tokens("two words") == ["two", "words"]
    assert tokens("红色 iPhone手机") == ["红", "色", "iPhone", "手", "机"]
    assert tokens("빨간 차") == ["빨간", "차"]


def test_shares_and_entropy() -> None:
    assert letter_share("ab 12") == 0.5 and letter_share("") == 0.0
    assert letter_share("हिन्दी") == 1.0  # vowel signs belong to their letters
    assert repeated_share(["a", "b", "a", "a"]) == 0.5 and repeated_share([]) == 0.0
    assert word_entropy(["a", "b", "c", "d"]) == pytest.approx(math.log(4))
    assert word_entropy(["a", "a", "b", "b"]) == pytest.approx(math.log(2))
    assert word_entropy(["a"] * 5) == 0.0 == word_entropy([])


def test_repetition_in_scripts_without_spaces_is_that_of_pairs() -> None:
    def share(text: str) -> float:
        return measure(text, True, STOCK, ("en", 1.0))["repeated_tokens"]

    assert share("左边有一个红色的圆形和一个蓝色的圆形") < 0.4  # every second character recurs
    assert share("红色圆形" * 6) > 0.8


def test_all_measures_of_a_text() -> None:
    found = measure("A dog and a dog", True, STOCK, ("en", 1.0))
    assert found["own"] and (found["n_chars"], found["n_words"], found["n_han"], found["lang"]) == (15, 5, 0, "en")
    assert found["repeated_tokens"] == pytest.approx(0.4) and found["letters"] == 1.0
    assert (
        not found["file_name"] and found["boilerplate"] == 0.0 and found["url_share"] == 0.0 and found["n_emoji"] == 0
    )
