"""Headings, paragraphs, tables and pictures, and the same document as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import html
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

_STYLE = (
    "body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em }"
    " table { border-collapse: collapse } th, td { border: 1px solid #bbb; padding: 0.2em 0.6em; text-align: left }"
    " img { max-width: 100%; image-rendering: pixelated } figure { margin: 1em 0 }"
)


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Table:
    """Cells are plain text."""

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """An image.

    Attributes:
        name: of its file, without suffix.
        caption: what is to be seen.
        pixels: uint8 [3, H, W], red, green and blue.
    """

    name: str
    caption: str
    pixels: NDArray[np.uint8]


Block = Heading | Paragraph | Table | Picture


def to_markdown(blocks: Iterable[Block], folder: str = "") -> str:
    """Without a final line break; pictures are links to NAME.png in `folder`."""
    return "\n\n".join(_markdown(block, folder) for block in blocks)


def _markdown(block: Block, folder: str) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {block.text}"
        case Paragraph():
            return block.text
        case Table():
            lines = [block.heading, ["---"] * len(block.heading), *block.rows]
            return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
        case Picture():
            return f"![{block.caption}]({quote(folder)}/{block.name}.png)\n\n{block.caption}"


def _cell(text: str) -> str:
    """Of a table, which neither a line break nor a bar may end."""
    return " ".join(text.split()).replace("|", "\\|")


def to_html(title: str, blocks: Iterable[Block]) -> str:
    """A document that needs no other file: pictures are within it."""
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        f'<head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style></head>',
        "<body>",
        *map(_html, blocks),
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def _html(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
        case Paragraph():
            return f"<p>{html.escape(block.text)}</p>"
        case Table():
            return "\n".join(
                ["<table>", _cells("th", block.heading), *(_cells("td", row) for row in block.rows), "</table>"]
            )
        case Picture():
            source = f"data:image/png;base64,{base64.b64encode(png(block.pixels)).decode('ascii')}"
            caption = html.escape(block.caption)
            return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _cells(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of uint8 [3, H, W]."""
    _, height, width = pixels.shape
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver="PNG", width=width, height=height, count=3, dtype="uint8") as dataset:
            dataset.write(pixels)
        return bytes(memory.read())
