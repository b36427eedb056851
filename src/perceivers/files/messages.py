"""Texts of files and of exceptions, made fit to be printed."""

import json

LONGEST_MESSAGE = 300
"""Characters that a message quotes of a library's exception or of a file."""

HARMLESS = frozenset("\n\t\xa0\u200c\u200d\u202f\u3000")
"""Characters that are printed as they are, though Python calls them unprintable: lines, tabs, spaces, joiners."""


def one_line(text: object, longest: int = LONGEST_MESSAGE) -> str:
    """Return what an exception says, or a file's own text, as one printable line of at most `longest` characters."""
    return printable(" ".join(str(text).split())[:longest])[:longest] or type(text).__name__


def printable(text: str) -> str:
    r"""Return a text in which every character that acts on a terminal or hides is spelled out as in JSON (\u001b).

    Lines and tabs stay. What this changes within a string of JSON is the same string for those who read it.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in HARMLESS else spelled(letter) for letter in text)


def spelled(letter: str) -> str:
    r"""Return a letter as JSON spells it out: \u00fc."""
    return "\\u007f" if letter == "\x7f" else json.dumps(letter)[1:-1]
