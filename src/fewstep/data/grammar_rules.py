"""The grammar of the built-in source ``grammar``: sentences whose distant words must agree."""

from itertools import product

from fewstep.data.grammar import Grammar, Parts


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


NAMES = _listed("anna bert carl dora emma fred gina hugo iris jack kate liam mona nils olga paul")
DETERMINERS = _listed("the some no my")
ADJECTIVES = _listed("old young tall slow quiet proud clever lonely")
NOUNS = _listed("ship horse doctor farmer king bridge river painter dog train singer tower")
VERBS = _listed("follow admire watch fear greet forget remember paint visit answer love miss")
PREPOSITIONS = _listed("near behind above beside")
LINKS = _listed("and but while because")
ITEMS = _listed("red blue green gold grey pink black white brown violet silver orange")
BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))
NUMBERS = ("singular", "plural")

Rules = dict[str, list[tuple[float, Parts]]]
AGREEMENTS = ("number", "brackets", "names")
"""What must agree in a sentence: a verb with its noun, a closing bracket with its opening, the last name with the
first."""


def agreement_grammar(*, number: bool = True, brackets: bool = True, names: bool = True) -> Grammar:
    """The grammar, or a laxer one in which the agreement that is False need not hold (this project's definition).

    A sentence is ``NAME says BODY , signed NAME`` with the same name twice. The body is a chain of clauses. In each,
    the verb agrees in number with a noun that a relative clause or a prepositional phrase, with nouns of any number,
    may part it from; determiners tell nothing. A clause may end in a bracketed group, nested to depth 3, whose closing
    brackets must be of the kind of their opening ones. Branches of a symbol are equally likely but where a weight says
    otherwise. No sentence has two derivations, as long as all agreements hold.
    """
    rules: Rules = {"sentence": _frames(names)}
    rules |= {"body": [], "clause": [], "object": []}
    noun_kinds = NUMBERS if number else ("any",)
    for kind in noun_kinds:
        rules["clause"].append((1, (f"subject {kind}", f"predicate {kind}")))
        rules |= _noun_phrases(kind, noun_kinds)
    # A body of one clause is that clause, spelled out, since a rule may not only rename.
    rules["body"] = [(weight / len(noun_kinds), parts) for weight, parts in rules["clause"]]
    rules["body"].append((1, ("clause", "link", "body")))
    for kind in noun_kinds:
        rules["object"] += [
            (2, ("determiner", f"noun {kind}")),
            (1, ("determiner", "adjective", f"noun {kind}")),
        ]
    rules |= _groups(brackets)
    for symbol, words in (
        ("determiner", DETERMINERS),
        ("adjective", ADJECTIVES),
        ("preposition", PREPOSITIONS),
        ("link", LINKS),
        ("item", ITEMS),
    ):
        rules[symbol] = _words(words)
    return Grammar(rules)


def _words(words: tuple[str, ...]) -> list[tuple[float, Parts]]:
    return [(1, (word,)) for word in words]


def _frames(must_agree: bool) -> list[tuple[float, Parts]]:
    pairs = [(name, name) for name in NAMES] if must_agree else list(product(NAMES, NAMES))
    return [(1, (first, "says", "body", ",", "signed", last)) for first, last in pairs]


def _noun_phrases(kind: str, noun_kinds: tuple[str, ...]) -> Rules:
    """Subject, relative clause and predicate of a number, with its nouns and verbs."""
    noun, verb, relative = f"noun {kind}", f"verb {kind}", f"relative {kind}"
    forms = {
        "singular": (NOUNS, tuple(_with_s(word) for word in VERBS)),
        "plural": (tuple(_with_s(word) for word in NOUNS), VERBS),
    }
    forms["any"] = (forms["singular"][0] + forms["plural"][0], forms["singular"][1] + forms["plural"][1])
    nouns, verbs = forms[kind]
    share = 1 / len(noun_kinds)
    others = [(f"noun {other}", f"verb {other}") for other in noun_kinds]
    return {
        f"subject {kind}": [
            (1, ("determiner", noun)),
            (1, ("determiner", "adjective", noun)),
            (4, ("determiner", noun, relative)),
            *((2 * share, ("determiner", noun, "preposition", "determiner", other)) for other, _ in others),
        ],
        relative: [
            (1, ("that", verb, "object")),
            *((share, ("that", "determiner", other, other_verb)) for other, other_verb in others),
        ],
        f"predicate {kind}": [(1, (verb, "object")), (2, (verb, "object", "group 1"))],
        noun: _words(nouns),
        verb: _words(verbs),
    }


def _with_s(word: str) -> str:
    return word + ("es" if word.endswith(("s", "ch", "sh")) else "s")


def _groups(must_match: bool) -> Rules:
    """Bracketed groups of depth 1 to 3; what is in one is a row of items and groups of the next depth."""
    opening, closing = zip(*BRACKETS, strict=True)
    pairs = BRACKETS if must_match else tuple(product(opening, closing))
    rules: Rules = {
        f"group {depth}": [(1, (left, f"inside {depth}", right)) for left, right in pairs] for depth in (1, 2, 3)
    }
    for depth in (1, 2):
        inner = f"group {depth + 1}"
        ways: list[Parts] = [
            ("item", "item"),
            ("item", inner),
            (inner, "item"),
            (inner, inner),
            ("item", inner, "item"),
        ]
        rules[f"inside {depth}"] = [(1, parts) for parts in ways]
    rules["inside 3"] = [(1, ("item", "item")), (1, ("item", "item", "item"))]
    return rules
