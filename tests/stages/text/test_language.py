"""Accuracy of language id on short texts. The sentences are written by hand; the captions are those of the demo."""

from __future__ import annotations

import csv
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stages.demo.captions import caption_for
from stages.demo.languages import LANGUAGES, translate
from stages.demo.scenes import draw_scene
from stages.text.language import CANDIDATES, UNKNOWN, _without_model, han_count, identify, identify_all

# Ten short sentences (2 to 8 words) with the same meanings in 16 languages.
SENTENCES: dict[str, list[str]] = {
    "en": [
        "A dog runs on the beach",
        "Two children play football",
        "Red car on a street",
        "Fresh bread on a wooden table",
        "My grandmother in the garden",
        "Old church at night",
        "Woman with a blue hat",
        "The best pizza in town",
        "Mountain lake in summer",
        "Happy birthday cake with candles",
    ],
    "de": [
        "Ein Hund läuft am Strand",
        "Zwei Kinder spielen Fußball",
        "Rotes Auto auf der Straße",
        "Frisches Brot auf dem Tisch",
        "Meine Oma im Garten",
        "Alte Kirche bei Nacht",
        "Frau mit blauem Hut",
        "Die beste Pizza der Stadt",
        "Bergsee im Sommer",
        "Kuchen mit Kerzen zum Geburtstag",
    ],
    "fr": [
        "Un chien court sur la plage",
        "Deux enfants jouent au football",
        "Voiture rouge dans la rue",
        "Du pain frais sur la table",
        "Ma grand-mère dans le jardin",
        "Vieille église la nuit",
        "Femme avec un chapeau bleu",
        "La meilleure pizza de la ville",
        "Lac de montagne en été",
        "Gâteau d'anniversaire avec des bougies",
    ],
    "es": [
        "Un perro corre por la playa",
        "Dos niños juegan al fútbol",
        "Coche rojo en la calle",
        "Pan fresco sobre la mesa",
        "Mi abuela en el jardín",
        "Iglesia antigua de noche",
        "Mujer con sombrero azul",
        "La mejor pizza de la ciudad",
        "Lago de montaña en verano",
        "Tarta de cumpleaños con velas",
    ],
    "it": [
        "Un cane corre sulla spiaggia",
        "Due bambini giocano a calcio",
        "Macchina rossa per strada",
        "Pane fresco sul tavolo",
        "Mia nonna nel giardino",
        "Vecchia chiesa di notte",
        "Donna con un cappello blu",
        "La migliore pizza della città",
        "Lago di montagna in estate",
        "Torta di compleanno con candeline",
    ],
    "pt": [
        "Um cão corre na praia",
        "Duas crianças jogam futebol",
        "Carro vermelho na rua",
        "Pão fresco na mesa",
        "Minha avó no jardim",
        "Igreja antiga à noite",
        "Mulher com chapéu azul",
        "A melhor pizza da cidade",
        "Lago na montanha no verão",
        "Bolo de aniversário com velas",
    ],
    "nl": [
        "Een hond rent op het strand",
        "Twee kinderen spelen voetbal",
        "Rode auto in de straat",
        "Vers brood op de tafel",
        "Mijn oma in de tuin",
        "Oude kerk in de nacht",
        "Vrouw met een blauwe hoed",
        "De beste pizza van de stad",
        "Bergmeer in de zomer",
        "Verjaardagstaart met kaarsen",
    ],
    "pl": [
        "Pies biega po plaży",
        "Dwoje dzieci gra w piłkę nożną",
        "Czerwony samochód na ulicy",
        "Świeży chleb na stole",
        "Moja babcia w ogrodzie",
        "Stary kościół nocą",
        "Kobieta w niebieskim kapeluszu",
        "Najlepsza pizza w mieście",
        "Górskie jezioro latem",
        "Tort urodzinowy ze świeczkami",
    ],
    "sv": [
        "En hund springer på stranden",
        "Två barn spelar fotboll",
        "Röd bil på gatan",
        "Färskt bröd på bordet",
        "Min mormor i trädgården",
        "Gammal kyrka på natten",
        "Kvinna med blå hatt",
        "Den bästa pizzan i stan",
        "Fjällsjö på sommaren",
        "Födelsedagstårta med ljus",
    ],
    "tr": [
        "Bir köpek sahilde koşuyor",
        "İki çocuk futbol oynuyor",
        "Sokakta kırmızı araba",
        "Masada taze ekmek",
        "Büyükannem bahçede",
        "Gece eski kilise",
        "Mavi şapkalı kadın",
        "Şehrin en iyi pizzası",
        "Yazın dağ gölü",
        "Mumlu doğum günü pastası",
    ],
    "ru": [
        "Собака бежит по пляжу",
        "Двое детей играют в футбол",
        "Красная машина на улице",
        "Свежий хлеб на столе",
        "Моя бабушка в саду",
        "Старая церковь ночью",
        "Женщина в синей шляпе",
        "Лучшая пицца в городе",
        "Горное озеро летом",
        "Торт со свечами на день рождения",
    ],
    "zh": [
        "一只狗在海滩上奔跑",
        "两个孩子在踢足球",
        "街上的红色汽车",
        "桌上的新鲜面包",
        "我的奶奶在花园里",
        "夜晚的老教堂",
        "戴蓝帽子的女人",
        "城里最好的披萨",
        "夏天的高山湖",
        "有蜡烛的生日蛋糕",
    ],
    "ja": [
        "犬が浜辺を走っている",
        "二人の子供がサッカーをする",
        "通りの赤い車",
        "テーブルの上の新鮮なパン",
        "庭にいる祖母",
        "夜の古い教会",
        "青い帽子の女性",
        "町で一番のピザ",
        "夏の山の湖",
        "ろうそくのある誕生日ケーキ",
    ],
    "ko": [
        "개가 해변을 달린다",
        "두 아이가 축구를 한다",
        "거리의 빨간 차",
        "식탁 위의 신선한 빵",
        "정원에 있는 할머니",
        "밤의 오래된 교회",
        "파란 모자를 쓴 여자",
        "도시 최고의 피자",
        "여름의 산속 호수",
        "촛불이 있는 생일 케이크",
    ],
    "ar": [
        "كلب يركض على الشاطئ",
        "طفلان يلعبان كرة القدم",
        "سيارة حمراء في الشارع",
        "خبز طازج على الطاولة",
        "جدتي في الحديقة",
        "كنيسة قديمة في الليل",
        "امرأة بقبعة زرقاء",
        "أفضل بيتزا في المدينة",
        "بحيرة جبلية في الصيف",
        "كعكة عيد ميلاد مع الشموع",
    ],
    "uk": [
        "Собака біжить по пляжу",
        "Двоє дітей грають у футбол",
        "Червона машина на вулиці",
        "Свіжий хліб на столі",
        "Моя бабуся в саду",
        "Стара церква вночі",
        "Жінка в синьому капелюсі",
        "Найкраща піца в місті",
        "Гірське озеро влітку",
        "Торт зі свічками на день народження",
    ],
}

FLOORS = {
    1: 0.5,
    2: 0.8,
    3: 0.9,
    4: 0.9,
}  # of texts cut to their first words; measured: see the docstring of stages.text.language


def accuracy(pairs: list[tuple[str, str]]) -> float:
    return sum(identify(text)[0] == language for language, text in pairs) / len(pairs)


def test_short_sentences_in_16_languages() -> None:
    pairs = [(language, text) for language, texts in SENTENCES.items() for text in texts]
    assert len(pairs) == 160
    assert accuracy(pairs) >= 0.95


@pytest.mark.parametrize("language", ["zh", "ja", "ko"])
def test_scripts_that_tell_the_language_are_sure(language: str) -> None:
    assert all(identify(text) == (language, pytest.approx(1.0)) for text in SENTENCES[language])


@pytest.mark.parametrize("language", ["ru", "uk"])
def test_cyrillic_texts_stay_in_languages_written_so(language: str) -> None:
    assert {identify(text)[0] for text in SENTENCES[language]} <= {"ru", "uk", "bg", "sr"}


@pytest.mark.parametrize("words", FLOORS)
def test_accuracy_by_length(words: int) -> None:
    spaced = {language: texts for language, texts in SENTENCES.items() if language not in ("zh", "ja")}
    pairs = [(language, " ".join(text.split()[:words])) for language, texts in spaced.items() for text in texts]
    assert accuracy(pairs) >= FLOORS[words]


def test_captions_of_the_demo() -> None:
    english = [("en", caption_for(draw_scene(i))) for i in range(200)]
    assert accuracy(english) >= 0.99
    others = [
        (language, translate(draw_scene(i), np.random.default_rng(i), language))
        for language in LANGUAGES
        for i in range(25)
    ]
    assert accuracy(others) >= 0.98


def test_real_english_captions() -> None:
    folder = os.environ.get("PAIRMILL_TEST_DATA")
    if not folder:
        pytest.skip("PAIRMILL_TEST_DATA names no folder")
    with (Path(folder) / "url_lists" / "cc3m_validation.tsv").open(encoding="utf-8") as file:
        captions = [row[0] for row in csv.reader(file, delimiter="\t")][:2000]
    assert accuracy([("en", text) for text in captions]) >= 0.99


@pytest.mark.parametrize("text", ["", "12345", "?!", "2019-01-01 10:20", "\U0001f600"])
def test_texts_without_letters_have_no_language(text: str) -> None:
    assert identify(text) == (UNKNOWN, 0.0)


def test_a_few_latin_words_do_not_change_a_chinese_text() -> None:
    assert identify("苹果手机 iPhone 官方旗舰店")[0] == "zh"
    assert identify("Nikon D850 の作例です")[0] == "ja"


def test_shouting_is_still_english() -> None:
    assert identify("TWO DOGS ARE PLAYING ON THE BEACH")[0] == "en"


def test_candidates_limit_the_answer() -> None:
    assert identify("Een hond rent op het strand")[0] == "nl"
    assert identify("Een hond rent op het strand", ("en", "de"))[0] in ("en", "de")
    assert set(SENTENCES) <= set(CANDIDATES)
    with pytest.raises(ValueError, match="xx"):
        identify("a text", ("en", "xx"))


def test_many_texts_at_once_get_the_answers_of_the_library() -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    library = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    library.set_languages(CANDIDATES)
    texts = [text for some in SENTENCES.values() for text in some]
    texts += [text[:cut] for text in texts for cut in (1, 2, 9)] + ["", "A", "42 x", "e\u0301te\u0301", "\ud800 lone", "TWO DOGS", "a dog", "a dog"]
    found = identify_all(texts)
    assert found == [identify(text) for text in texts]
    asked = [(text, answer) for text, answer in zip(texts, found, strict=True) if _without_model(text) is None]
    told = [library.classify(text) for text, _ in asked]
    assert len(asked) > 200 and [answer for _, answer in asked] == [(language, round(score, 4)) for language, score in told]
    assert identify_all([]) == []


def test_long_texts_cost_no_more_than_their_start() -> None:
    identify("warm up")
    start = time.thread_time()
    assert identify("the dog runs over the meadow " * 20_000)[0] == "en"
    assert time.thread_time() - start < 0.1


def test_han_characters_are_counted() -> None:
    assert (han_count("一只狗 dog"), han_count("dog"), han_count("犬が")) == (3, 0, 1)


def test_every_sentence_list_has_ten() -> None:
    assert Counter(len(texts) for texts in SENTENCES.values()) == {10: 16}
