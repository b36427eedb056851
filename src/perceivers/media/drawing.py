"""Drawing of arrays and text on the axes of a matplotlib figure."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def show_image(axes: "Axes", pixels: np.ndarray, value_range: tuple[float, float] | None = None) -> None:
    """Draw an image [H, W, C]: in colour if C is 3, otherwise the mean over C in grey. NaN is white."""
    known = np.nan_to_num(pixels)
    low, high = value_range or (float(known.min()), float(known.max()))
    scaled = np.clip((pixels - low) / max(high - low, 1e-12), 0, 1)
    if scaled.shape[-1] == 3:
        axes.imshow(np.nan_to_num(scaled, nan=1.0))
    else:
        axes.imshow(scaled.mean(axis=-1), cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()


def show_heat(axes: "Axes", heat: np.ndarray) -> None:
    """Draw a heat map [h, w] of any size over the image on the axes; higher values are more opaque."""
    left, right, bottom, top = (*axes.get_xlim(), *axes.get_ylim())
    share = heat / max(float(heat.max()), 1e-12)
    extent, aspect = (left, right, bottom, top), axes.get_aspect()
    axes.imshow(share, cmap="autumn_r", alpha=0.75 * share, extent=extent, aspect=aspect, zorder=2)
    axes.set(xlim=(left, right), ylim=(bottom, top))


ROOM = 84.0
"""Side of small axes, in points."""


def drawable(text: str, family: str = "sans") -> str:
    """Return a text as a figure can draw it: characters that the font lacks are replaced, and $ starts no formula."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(family))
    drawn = "".join(c if c == "\n" or font.get_char_index(ord(c)) else "\N{REPLACEMENT CHARACTER}" for c in text)
    return drawn if family == "monospace" else drawn.replace("$", r"\$")


def show_text(axes: "Axes", text: str) -> None:
    """Draw plain text from the upper left corner, small enough to fit; characters that the font lacks are replaced."""
    drawn = drawable(text, "monospace")
    lines = drawn.split("\n")
    size = min(8.0, ROOM / (1.2 * len(lines)), ROOM / (0.6 * max(map(len, lines)) or 1))
    written = axes.text(0, 1, drawn, family="monospace", fontsize=max(size, 3.0), va="top", parse_math=False)
    written.set_in_layout(False)  # otherwise long text would shrink everything else
    axes.set_axis_off()
