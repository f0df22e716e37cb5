from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rasterio.io import MemoryFile

from qgis_iic.training.document import Heading, Paragraph, Picture, Table, png, to_html, to_markdown

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 5, 7)).astype(np.uint8)
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
DOCUMENT = [
    Heading(1, "Fish & chips"),
    Paragraph("a < b"),
    Table(("left", "right"), [("1", "2"), ("<3>", "4")]),
    Picture("plaice", "A plaice", PIXELS),
]


def read_png(content: bytes) -> np.ndarray:
    with MemoryFile(content) as memory, memory.open() as dataset:
        pixels: np.ndarray = dataset.read()
    return pixels


def test_markdown() -> None:
    assert to_markdown(DOCUMENT, "folder") == (
        "# Fish & chips\n\na < b\n\n| left | right |\n| --- | --- |\n| 1 | 2 |\n| <3> | 4 |\n\n"
        "![A plaice](folder/plaice.png)\n\nA plaice"
    )


def test_a_png_keeps_every_pixel() -> None:
    np.testing.assert_array_equal(read_png(png(PIXELS)), PIXELS)


def test_html_is_one_file_with_its_pictures() -> None:
    text = to_html("Fish & chips", DOCUMENT)
    assert "<h1>Fish &amp; chips</h1>" in text
    assert "<p>a &lt; b</p>" in text
    assert "<tr><td>&lt;3&gt;</td><td>4</td></tr>" in text
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    np.testing.assert_array_equal(read_png(base64.b64decode(picture)), PIXELS)
    assert text.count("src=") + text.count("href=") == 1


def test_html_closes_what_it_opens() -> None:
    class Balance(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "img"):
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    balance = Balance()
    balance.feed(to_html("Fish & chips", DOCUMENT))
    assert balance.open == []


def test_a_cell_ends_neither_its_row_nor_itself() -> None:
    table = Table(("a", "b"), [("x | y", "two\nlines")])
    assert to_markdown([table]).splitlines()[-1] == "| x \\| y | two lines |"
