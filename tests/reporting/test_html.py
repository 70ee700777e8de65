"""Test `finetune.reporting.html`."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from finetune.reporting import confusions, html
from finetune.reporting.html import svg, thumbnail


def shown(tag: str) -> Image.Image:
    """The image within an `<img>`."""
    data = re.search(r'src="data:image/jpeg;base64,([^"]+)"', tag)
    assert data is not None
    return Image.open(BytesIO(base64.b64decode(data[1])))


def test_percent_keeps_number_and_sign_together() -> None:
    assert html.percent(0.935) == "93.5\N{NO-BREAK SPACE}%"
    assert html.percent(1, 0) == "100\N{NO-BREAK SPACE}%"


def test_thumbnail_is_upright_and_small_and_says_how_large_it_is(tmp_path: Path) -> None:
    image = Image.new("RGB", (600, 300), (250, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    image.save(tmp_path / "a.jpg", exif=exif)
    tag = html.thumbnail(tmp_path / "a.jpg", 100)
    assert tag is not None
    assert shown(tag).size == (50, 100)
    assert 'width="50" height="100"' in tag
    red, green, blue = shown(tag).convert("RGB").getpixel((25, 50))  # type: ignore[misc]
    assert red > 230 > 40 > max(green, blue)


def test_names_of_images_are_no_markup() -> None:
    tag = html.inline_image(Image.new("RGB", (4, 4)), '"><script>x\udcff')
    assert "<script" not in tag
    assert "&lt;script&gt;x\\udcff" in tag


def test_two_figures_of_a_page_share_no_id_and_have_a_name() -> None:
    def drawn(label: str) -> str:
        figure = Figure(figsize=(2, 2))
        figure.subplots().plot([0, 1], [0, 1], label=label)
        return str(html.svg(figure, f"<{label}>"))

    one, two = drawn("one"), drawn("two")
    assert one.startswith('<svg role="img" aria-label="&lt;one&gt;"')
    groups = [re.findall(r'<g id="([^"]+)"', text) for text in (one, two)]
    assert groups == [[], []]
    assert drawn("one") == one  # the same figure is the same text


def test_svg_takes_the_colour_of_the_text_around_it() -> None:
    drawn = str(svg(confusions.matrix_figure([[3, 1], [0, 4]], ["<a>", "b$"], "counts"), "counts"))
    assert "currentColor" in drawn
    assert "#000000" not in drawn
    assert "&lt;a&gt;" in drawn
    assert "b$" in drawn


def test_thumbnail_of_a_bad_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no")
    assert thumbnail(tmp_path / "a.jpg") is None
