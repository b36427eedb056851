"""The page docs/proof.md: a section for each suite that `make proof` runs in full."""

import fcntl
import re
from datetime import date
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "proof.md"

HEAD = """# Proof

Each section is written by the test it names when `make proof` runs. [security.md](security.md) says what is promised.
"""


def write_section(title, text):
    """Put a section in the place of the one of this title, or at the end; suites may do so at the same time."""
    with PAGE.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _, *sections = re.split(r"^## ", file.read(), flags=re.MULTILINE)
        kept = {section.partition("\n")[0]: section.partition("\n")[2].strip() for section in sections}
        kept[title] = text.format(date=date.today()).strip()
        page = HEAD + "".join(f"\n## {title}\n\n{text}\n" for title, text in kept.items())
        file.seek(0)
        file.truncate()
        file.write(page)


def table(heads, rows):
    """A table in Markdown: the first column is of texts, the others of numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
