"""Small texts, each different from the others."""

import json
import random
from pathlib import Path

WORDS = [
    "the",
    "ship",
    "sailed",
    "past",
    "old",
    "lights",
    "and",
    "how",
    "far",
    "café",
    "Straße",
    "漢字",
    "be",
    "from",
    "here",
]


def make_text(seed: int, words: int = 60) -> str:
    """A document that no other seed gives, with characters of 1, 2 and 3 bytes."""
    draw = random.Random(seed)
    return f"Document {seed}. " + " ".join(draw.choice(WORDS) for _ in range(words))


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    """One object a line."""
    path.write_text("".join(json.dumps({field: text, "id": 1}) + "\n" for text in texts), encoding="utf-8")
    return path
