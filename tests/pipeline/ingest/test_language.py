"""The language of short captions. None of these captions was used to choose the rule."""

import subprocess
import sys

import pytest

from pipeline.ingest.language import LANGUAGES, language_of

ENGLISH = [
    "a black dog runs through shallow water",
    "three people sitting on a bench",
    "plate with rice and beans",
    "yellow flowers in a garden",
    "an old man reading a newspaper",
    "boats in the harbour",
    "a cat looking out of the window",
    "children playing in the snow",
    "a wooden bridge over a stream",
    "street market with vegetables",
    "woman in a blue dress",
    "a stack of pancakes",
    "zebras at a water hole",
    "bathroom with a white sink",
    "young girl with curly hair",
    "a plane on the runway",
    "two dogs playing with a ball",
    "view of the valley from above",
    "a glass of orange juice",
    "brick wall with graffiti",
    "man on a motorcycle",
    "horses in the mist",
    "a teddy bear on a chair",
    "dark clouds over the sea",
    "a bouquet of roses",
    "child on a swing",
    "green parrot on a branch",
    "a pair of scissors",
    "the inside of a church",
    "an empty parking lot",
]

OTHERS = {
    "de": ["drei Kinder spielen im Schnee", "ein Glas Orangensaft auf dem Tisch", "eine alte Brücke über den Fluss"],
    "fr": ["trois enfants jouent dans la neige", "un verre de jus d'orange", "un vieux pont sur la rivière"],
    "es": ["tres niños juegan en la nieve", "un vaso de zumo de naranja", "un viejo puente sobre el río"],
    "it": ["tre bambini giocano nella neve", "un bicchiere di succo d'arancia"],
    "zh": ["三个孩子在雪地里玩耍", "一杯橙汁"],
    "ja": ["雪の中で遊ぶ三人の子供", "オレンジジュースのグラス"],
    "ko": ["눈 속에서 노는 아이들", "오렌지 주스 한 잔"],
    "ru": ["трое детей играют в снегу", "стакан апельсинового сока"],
    "ar": ["ثلاثة أطفال يلعبون في الثلج", "كوب من عصير البرتقال"],
    "el": ["τρία παιδιά παίζουν στο χιόνι"],
    "he": ["שלושה ילדים משחקים בשלג"],
    "th": ["เด็กสามคนเล่นในหิมะ"],
    "hi": ["तीन बच्चे बर्फ में खेल रहे हैं"],
}


def test_short_english_captions_are_english():
    assert sum(language_of(text).code == "en" for text in ENGLISH) >= 28  # of 30


def test_other_languages_are_told_apart_and_never_taken_for_english():
    answers = [(code, language_of(text).code) for code, texts in OTHERS.items() for text in texts]
    assert sum(asked == answered for asked, answered in answers) >= len(answers) - 2
    assert not [asked for asked, answered in answers if answered == "en"]


@pytest.mark.parametrize(
    "text", ["", "dog", "Sonnenuntergang", "12 345", "a b", "?! ...", "🐱 🐶 🐭", "IMG_2043.JPG", "日本"]
)
def test_what_says_too_little_is_undetermined(text):
    assert language_of(text) == ("und", 0.0)


def test_answers_are_codes_with_probabilities_whatever_the_text():
    for text in [
        *ENGLISH,
        "\ud800 lone surrogate here",
        "\x00\x01 control characters",
        "word " * 2000,
        "Paris, France",
    ]:
        code, probability = language_of(text)
        assert code in LANGUAGES | {"und"}
        assert 0 <= probability <= 1
        assert language_of(text) == (code, probability)


def test_capitals_change_nothing():
    assert language_of("A DOG ON THE BEACH") == language_of("a dog on the beach")


def test_the_model_is_loaded_when_first_asked_and_not_before():
    code = (
        "import sys\nfrom pipeline.ingest.language import language_of\n"
        "assert 'py3langid' not in sys.modules\nlanguage_of('dog')\nassert 'py3langid' not in sys.modules\n"
        "assert language_of('a dog on the beach').code == 'en'\nassert 'py3langid' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
