"""True captions of rendered scenes in other languages, from word tables, for the 'other languages' fault.

Colours and sizes agree with the gender of the shape's noun; textures are said with phrases that do not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from stages.demo.scenes import Scene, SceneObject


@dataclass(frozen=True)
class Language:
    """Word tables; lists follow the order of _SHAPES, _COLORS, _TEXTURES, _SIZES, _POSITIONS and _BACKGROUNDS.

    `shapes` are 'noun|gender'; a colour or size is one form, or 'm|f' or 'm|f|n' forms; `phrase` sets the order.
    """

    openings: tuple[str, ...]
    article: str
    phrase: str
    shapes: str
    colors: str
    textures: str
    sizes: str
    positions: str
    backgrounds: str
    joiner: str = ", "
    conjunction: str = " "
    genders: str = "mf"


_SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
_COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "white", "black")
_TEXTURES = ("striped", "dotted", "checkered")
_SIZES = ("small", "medium", "large")
_POSITIONS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
_BACKGROUNDS = ("white", "gray", "light blue", "sunset", "meadow", "night", "sand", "grid paper", "wood", "sea")

LANGUAGES: Final[dict[str, Language]] = {
    "de": Language(
        openings=("ein Bild, darauf ist {}", "hier sieht man {}", "auf dem Foto ist {}", "das Bild zeigt uns {}"),
        article="ein|eine|ein",
        phrase="{article} {size} {color} {shape} {texture} {position}",
        genders="mfn",
        conjunction=" und ",
        shapes="Kreis|m;Quadrat|n;Dreieck|n;Stern|m;Herz|n;Karo|n;Kreuz|n;Ring|m",
        colors="roter|rote|rotes;oranger|orange|oranges;gelber|gelbe|gelbes;grüner|grüne|grünes;"
        "türkiser|türkise|türkises;blauer|blaue|blaues;violetter|violette|violettes;rosafarbener|rosafarbene|rosafarbenes;"
        "brauner|braune|braunes;weißer|weiße|weißes;schwarzer|schwarze|schwarzes",
        textures="mit Streifen;mit Punkten;mit Karomuster",
        sizes="kleiner|kleine|kleines;mittelgroßer|mittelgroße|mittelgroßes;großer|große|großes",
        positions="oben links;ganz oben;oben rechts;auf der linken Seite;in der Mitte;auf der rechten Seite;"
        "unten links;ganz unten;unten rechts",
        backgrounds="vor weißem Hintergrund;vor grauem Hintergrund;vor hellblauem Hintergrund;vor dem Sonnenuntergang;"
        "über einer grünen Wiese;unter dem Sternenhimmel;auf dem Sand am Strand;auf kariertem Papier;"
        "auf einem Holztisch;auf den Wellen des Meeres",
    ),
    "fr": Language(
        openings=("une photo avec {}", "on voit ici {}", "cette image montre {}", "voici {}"),
        article="un|une",
        phrase="{article} {size} {shape} {color} {texture} {position}",
        conjunction=" et ",
        shapes="cercle|m;carré|m;triangle|m;étoile|f;cœur|m;losange|m;croix|f;anneau|m",
        colors="rouge;orange;jaune;vert|verte;turquoise;bleu|bleue;violet|violette;rose;marron;blanc|blanche;noir|noire",
        textures="à rayures;à pois;à carreaux",
        sizes="petit|petite;moyen|moyenne;grand|grande",
        positions="en haut à gauche;tout en haut;en haut à droite;du côté gauche;au milieu;du côté droit;"
        "en bas à gauche;tout en bas;en bas à droite",
        backgrounds="sur un fond blanc;sur un fond gris;sur un fond bleu clair;devant le coucher du soleil;"
        "au-dessus d'une prairie verte;dans le ciel étoilé de la nuit;sur le sable de la plage;"
        "sur du papier quadrillé;sur une table en bois;sur les vagues de la mer",
    ),
    "es": Language(
        openings=("una foto de {}", "aquí se puede ver {}", "esta imagen muestra {}", "en la imagen hay {}"),
        article="un|una",
        phrase="{article} {shape} {color} {size} {texture} {position}",
        conjunction=" y ",
        shapes="círculo|m;cuadrado|m;triángulo|m;estrella|f;corazón|m;rombo|m;cruz|f;anillo|m",
        colors="rojo|roja;naranja;amarillo|amarilla;verde;turquesa;azul;morado|morada;rosa;marrón;blanco|blanca;negro|negra",
        textures="a rayas;con lunares;a cuadros",
        sizes="pequeño|pequeña;mediano|mediana;grande",
        positions="arriba a la izquierda;en la parte de arriba;arriba a la derecha;en el lado izquierdo;en el centro;"
        "en el lado derecho;abajo a la izquierda;en la parte de abajo;abajo a la derecha",
        backgrounds="sobre un fondo blanco;sobre un fondo gris;sobre un fondo azul claro;delante de la puesta de sol;"
        "sobre un prado verde;bajo el cielo estrellado de la noche;sobre la arena de la playa;"
        "sobre papel cuadriculado;sobre una mesa de madera;sobre las olas del mar",
    ),
    "it": Language(
        openings=("una foto con {}", "qui si vede {}", "questa immagine mostra {}", "nella figura vediamo {}"),
        article="un|una",
        phrase="{article} {shape} {color} {size} {texture} {position}",
        conjunction=" e ",
        shapes="cerchio|m;quadrato|m;triangolo|m;stella|f;cuore|m;rombo|m;croce|f;anello|m",
        colors="rosso|rossa;arancione;giallo|gialla;verde;turchese;blu;viola;rosa;marrone;bianco|bianca;nero|nera",
        textures="a strisce;a pois;a quadretti",
        sizes="piccolo|piccola;di media grandezza;grande",
        positions="in alto a sinistra;nella parte alta;in alto a destra;sul lato sinistro;nel mezzo;sul lato destro;"
        "in basso a sinistra;nella parte bassa;in basso a destra",
        backgrounds="su uno sfondo bianco;su uno sfondo grigio;su uno sfondo azzurro chiaro;davanti al tramonto;"
        "sopra un prato verde;sotto il cielo stellato della notte;sulla sabbia della spiaggia;"
        "su carta a quadretti;su un tavolo di legno;sulle onde del mare",
    ),
    "pt": Language(
        openings=("uma foto com {}", "aqui se vê {}", "esta imagem mostra {}", "na figura há {}"),
        article="um|uma",
        phrase="{article} {shape} {color} {size} {texture} {position}",
        conjunction=" e ",
        shapes="círculo|m;quadrado|m;triângulo|m;estrela|f;coração|m;losango|m;cruz|f;anel|m",
        colors="vermelho|vermelha;laranja;amarelo|amarela;verde;turquesa;azul;roxo|roxa;rosa;marrom;branco|branca;preto|preta",
        textures="com listras;com bolinhas;em xadrez",
        sizes="pequeno|pequena;de tamanho médio;grande",
        positions="em cima à esquerda;na parte de cima;em cima à direita;do lado esquerdo;no meio;do lado direito;"
        "embaixo à esquerda;na parte de baixo;embaixo à direita",
        backgrounds="sobre um fundo branco;sobre um fundo cinza;sobre um fundo azul claro;em frente ao pôr do sol;"
        "sobre um campo verde;sob o céu estrelado da noite;sobre a areia da praia;"
        "sobre papel quadriculado;sobre uma mesa de madeira;sobre as ondas do mar",
    ),
    "ru": Language(
        openings=("на картинке {}", "здесь виден рисунок, на нём {}", "на фотографии {}", "вот {}"),
        article="один|одна|одно",
        phrase="{size} {color} {shape} {texture} {position}",
        genders="mfn",
        conjunction=" и ",
        shapes="круг|m;квадрат|m;треугольник|m;звезда|f;сердце|n;ромб|m;крест|m;кольцо|n",
        colors="красный|красная|красное;оранжевый|оранжевая|оранжевое;жёлтый|жёлтая|жёлтое;зелёный|зелёная|зелёное;"
        "бирюзовый|бирюзовая|бирюзовое;синий|синяя|синее;фиолетовый|фиолетовая|фиолетовое;розовый|розовая|розовое;"
        "коричневый|коричневая|коричневое;белый|белая|белое;чёрный|чёрная|чёрное",
        textures="в полоску;в горошек;в клетку",
        sizes="маленький|маленькая|маленькое;средний|средняя|среднее;большой|большая|большое",
        positions="вверху слева;вверху;вверху справа;слева;в центре;справа;внизу слева;внизу;внизу справа",
        backgrounds="на белом фоне;на сером фоне;на голубом фоне;на фоне заката;над зелёным лугом;"
        "под звёздным ночным небом;на песке у моря;на бумаге в клетку;на деревянном столе;на морских волнах",
    ),
    "zh": Language(
        openings=("图片中有{}", "这张照片里有{}", "我们可以看到{}", "画面上有{}"),
        article="一个",
        phrase="{position}有{article}{texture}{size}{color}{shape}",
        joiner="，",
        conjunction="，还有",
        shapes="圆形|m;正方形|m;三角形|m;星星|m;爱心|m;菱形|m;十字|m;圆环|m",
        colors="红色的;橙色的;黄色的;绿色的;青色的;蓝色的;紫色的;粉色的;棕色的;白色的;黑色的",
        textures="带条纹的;带圆点的;带格子的",
        sizes="小的;中等大小的;大的",
        positions="左上角;上方;右上角;左边;中间;右边;左下角;下方;右下角",
        backgrounds="背景是白色;背景是灰色;背景是浅蓝色;背景是日落;背景是绿色的草地;背景是夜晚的星空;背景是沙滩;"
        "画在方格纸上;放在木桌上;漂在海面上",
    ),
}


def translate(scene: Scene, rng: np.random.Generator, language: str) -> str:
    """A true caption of a scene in another language; all objects, with drawn detail.

    Raises:
        KeyError: the language has no word table; the message lists those that have.
    """
    if language not in LANGUAGES:
        raise KeyError(f"language {language!r} has no word table; known: {', '.join(LANGUAGES)}")
    tables = LANGUAGES[language]
    order = rng.permutation(len(scene.objects))
    phrases = [_noun(scene.objects[int(index)], rng, tables) for index in order]
    nouns = phrases[-1]
    if len(phrases) > 1:
        nouns = tables.joiner.join(phrases[:-1]) + tables.conjunction + phrases[-1]
    text = tables.openings[int(rng.integers(len(tables.openings)))].format(nouns)
    background = tables.backgrounds.split(";")[_BACKGROUNDS.index(scene.background)]
    separator = tables.joiner if tables.joiner == "，" or len(phrases) > 1 else " "
    return text + separator + background


def _noun(item: SceneObject, rng: np.random.Generator, tables: Language) -> str:
    shape, gender = tables.shapes.split(";")[_SHAPES.index(item.shape)].split("|")
    form = tables.genders.index(gender)
    words = {
        "article": _agree(tables.article, form),
        "shape": shape,
        "color": _agree(tables.colors.split(";")[_COLORS.index(item.color)], form),
        "texture": "",
        "size": "",
        "position": tables.positions.split(";")[_POSITIONS.index(item.position)],
    }
    if item.texture != "solid":
        words["texture"] = tables.textures.split(";")[_TEXTURES.index(item.texture)]
    if rng.random() < 0.5:
        words["size"] = _agree(tables.sizes.split(";")[_SIZES.index(item.size)], form)
    return " ".join(tables.phrase.format(**words).split())


def _agree(forms: str, form: int) -> str:
    """'rojo|roja' and 1 give 'roja'; a word with one form stays as it is."""
    choices = forms.split("|")
    return choices[form] if len(choices) > 1 else choices[0]
