"""Sanitising of texts from files and exceptions, for printing."""

import json

LONGEST_MESSAGE = 300
"""Largest number of characters that a message quotes from a library's exception or a file."""

HARMLESS = frozenset("\n\t\xa0\u200c\u200d\u202f\u3000")
"""Characters printed unchanged although Python calls them unprintable: newlines, tabs, spaces, joiners."""


def one_line(text: object, longest: int = LONGEST_MESSAGE) -> str:
    """Return the text of an exception or of a file as one printable line of at most `longest` characters."""
    return printable(" ".join(str(text).split())[:longest])[:longest] or type(text).__name__


def printable(text: str) -> str:
    r"""Return a text with every character that controls a terminal or is invisible escaped as in JSON (\u001b).

    Newlines and tabs stay. Within a string of JSON the escaping does not change the string that a parser reads.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in HARMLESS else spelled(letter) for letter in text)


def spelled(letter: str) -> str:
    r"""Return a character as an escape of JSON: \u00fc."""
    return "\\u007f" if letter == "\x7f" else json.dumps(letter)[1:-1]
