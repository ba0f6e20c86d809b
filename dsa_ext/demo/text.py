"""The text: the standard library's, as words, with a sentence planted in it."""

import inspect
import re
from collections import Counter
from dataclasses import dataclass

NEEDLE = "the secret word of zanzibar is marzipan ."
QUESTION = "the secret word of zanzibar is"
DEPTH = 0.35  # of the text, where the sentence is planted


@dataclass(frozen=True)
class Text:
    words: list[str]  # lower case; punctuation marks are words
    needle: range  # positions of the planted sentence
    answer: int  # of the word that the question asks for
    source: str

    @property
    def frequencies(self) -> Counter[str]:
        return Counter(self.words)


def make_text(tokens: int) -> Text:
    """So many words, of which the last are the question."""
    needle, question = NEEDLE.split(), QUESTION.split()
    if tokens < 4 * len(needle):
        raise ValueError(f"make_text: tokens is {tokens}, expected at least {4 * len(needle)}")
    prose, source = _standard_library()
    words = _words(prose)
    room = tokens - len(needle) - len(question)
    if len(words) < room:
        raise ValueError(f"make_text: tokens is {tokens}, expected at most {len(words) + tokens - room}")
    at = int(room * DEPTH)
    whole = words[:at] + needle + words[at:room] + question
    return Text(whole, range(at, at + len(needle)), at + needle.index("marzipan"), source)


def _standard_library() -> tuple[str, str]:
    """Prose, and what it is."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # left out of some installations
        import argparse
        import typing

        return "\n".join(map(inspect.getsource, (argparse, typing))), "the sources of argparse and typing"
    return "\n".join(topics[name] for name in sorted(topics)), "Python's documentation, as pydoc has it"


def _words(prose: str) -> list[str]:
    """Without the marks of headings, quotations and lists."""
    return re.findall(r"[^\W_]+|[.,;:!?()]", prose.lower())
