"""The page docs/proof.md: a section for each suite that `make proof` runs in full."""

import fcntl
import re
from datetime import date
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "proof.md"

HEAD = """# Proof

Each section is written by the test it names when `make proof` runs, or by the command it names.
[security.md](security.md) says what is promised.
"""


def write_section(title, text):
    """Replace the section with this title, or append it; several suites may do so at the same time."""
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
    """Return a Markdown table: the first column holds text, the others numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
