"""Words of children's stories that belong together: pairs that grammar or meaning links, and groups for a map.

All lower case but names, without the space before them; nearly all are one token of both vocabularies with it. In one
kind of pairs no word stands on both sides, so that shuffling the right-hand words makes no word its own partner.
"""

Pairs = dict[str, tuple[tuple[str, str], ...]]


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    found = (pair.partition("/") for pair in text.split())
    return tuple((left, right) for left, _, right in found)


WORD_PAIRS: Pairs = {
    "he / she": _pairs(
        "he/she him/her himself/herself boy/girl mom/dad mommy/daddy mother/father brother/sister grandma/grandpa "
        "man/woman king/queen prince/princess uncle/aunt"
    ),
    "was / were": _pairs("was/were is/are has/have does/do goes/go wants/want loves/love sees/see"),
    "say / said": _pairs(
        "say/said see/saw go/went run/ran make/made take/took find/found give/gave come/came know/knew think/thought "
        "play/played want/wanted look/looked like/liked love/loved help/helped walk/walked ask/asked eat/ate can/could "
        "will/would feel/felt try/tried start/started"
    ),
    "day / days": _pairs(
        "day/days toy/toys friend/friends flower/flowers tree/trees bird/birds animal/animals car/cars ball/balls "
        "cat/cats dog/dogs book/books thing/things eye/eyes hand/hands leaf/leaves boy/boys block/blocks game/games "
        "shoe/shoes color/colors story/stories"
    ),
    "big / small": _pairs(
        "big/small happy/sad good/bad hot/cold old/new up/down in/out day/night fast/slow yes/no more/less high/low "
        "left/right inside/outside before/after open/close first/last"
    ),
    "said / asked": _pairs(
        "said/asked mom/mommy dad/daddy big/huge happy/glad little/tiny scared/afraid began/started pretty/beautiful "
        "road/street house/home yelled/shouted"
    ),
    "Tom / Tim": _pairs("Tom/Tim Ben/Max Sam/Jack Lily/Mia Sara/Anna Lucy/Amy"),
}
"""Pairs by kind: gender, number of a verb, tense, number of a noun, opposites, near synonyms, names of one gender."""

WORD_GROUPS: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "animals": "dog cat bird fish bear rabbit frog mouse",
        "family": "mom dad mother father brother sister",
        "names": "Tim Tom Ben Max Lily Mia Sara Lucy",
        "colours": "red blue green yellow pink white",
        "past tense": "ran played ate walked saw went",
        "feelings": "happy sad scared angry excited proud",
    }.items()
}
"""Forty words by group, for a map."""
