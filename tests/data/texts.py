"""Small texts, each different from the others."""

import json
import random
from pathlib import Path

SENTENCE = "the ship sailed past old lights and how far café Straße 漢字 be from here"


def make_text(seed: int, words: int = 60) -> str:
    """A document that no other seed gives, with characters of 1, 2 and 3 bytes."""
    draw, choices = random.Random(seed), SENTENCE.split()
    return f"Document {seed}. " + " ".join(draw.choice(choices) for _ in range(words))


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    """One object a line."""
    path.write_text("".join(json.dumps({field: text, "id": 1}) + "\n" for text in texts), encoding="utf-8")
    return path
