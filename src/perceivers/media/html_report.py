"""Reports: a single HTML page with text, tables and figures, which needs no other file."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perceivers.files.durable import whole_file
from perceivers.files.messages import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
pre { white-space: pre-wrap; background: #f6f6f6; padding: .6rem; }
h1, h2 { font-weight: 600; } img { max-width: 100%; } .note { color: #666; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .3rem .9rem; border-bottom: 1px solid #ddd; }
th, td:first-child { text-align: left; } td { text-align: right; font-variant-numeric: tabular-nums; }
"""


class Report:
    """A report, built from parts in the order in which they are added."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[str] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        self.parts.append(f"<h2>{_escaped(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self.parts.append(f"<p>{_escaped(text)}</p>")

    def verbatim(self, text: str) -> None:
        """Add preformatted text."""
        self.parts.append(f"<pre>{_escaped(text)}</pre>")

    def table(self, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
        """Add a table; its first column holds the names of the rows."""
        head = "".join(f"<th>{_escaped(column)}</th>" for column in columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in (name, *cells)) + "</tr>"
            for name, cells in rows.items()
        )
        self.parts.append(f"<table><tr>{head}</tr>{body}</table>")

    def figure(self, figure: "Figure", caption: str) -> None:
        """Add a matplotlib figure, embedded in the page."""
        png = io.BytesIO()
        figure.savefig(png, dpi=130, bbox_inches="tight")
        data = base64.b64encode(png.getvalue()).decode()
        caption = _escaped(caption)
        self.parts.append(f'<img alt="{caption}" src="data:image/png;base64,{data}"><p class="note">{caption}</p>')

    def html(self) -> str:
        """Return the page."""
        title = _escaped(self.title)
        head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        return head + f"<h1>{title}</h1>" + "\n".join(self.parts) + "</html>\n"

    def write(self, path: Path) -> Path:
        """Write the page."""
        with whole_file(path) as fresh:
            fresh.write_text(self.html(), encoding="utf-8")
        return path


def _escaped(text: str) -> str:
    return html.escape(printable(text))
