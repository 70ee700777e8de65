"""Write HTML pages that are one file each: no network, no scripts, images inside."""

from __future__ import annotations

import base64
import io
import re
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from finetune.images import decode
from finetune.io.files import write_atomically
from finetune.reporting import figures
from finetune.reporting.figures import drawable

SIDE = 220
"""Longest side of a thumbnail in pixels."""


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render one of `templates/` into a file, whole or not at all."""
    write_atomically(path, _environment().get_template(template).render(**values).encode(errors="backslashreplace"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("finetune.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_drawable_text,
    )
    environment.filters["percent"] = percent
    environment.filters["amount"] = lambda number: f"{number:,}"
    return environment


def _drawable_text(value: Any) -> Any:
    return drawable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def percent(share: float, digits: int = 1) -> str:
    """Format 0.935 as 93.5 %."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def thumbnail(path: str | Path, side: int = SIDE) -> Markup | None:
    """Return an `<img>` of an image file, upright and small; None if it cannot be read."""
    try:
        image = decode.load_preview(path)
    except decode.BadImageError:
        return None
    image.thumbnail((side, side))
    return inline_image(image, Path(path).name)


def inline_image(image: Image.Image, alt: str) -> Markup:
    """Return an `<img>` that holds the image.

    Args:
        image: in the size in which it is shown.
        alt: text for readers who cannot see it.
    """
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img src="data:image/jpeg;base64,{}" alt="{}" width="{}" height="{}">').format(
        data, drawable(alt), *image.size
    )


def svg(figure: Figure, label: str) -> Markup:
    """Return a figure as an `<svg>` that takes the colour of the text around it.

    Args:
        figure: drawn.
        label: text for readers who cannot see it.
    """
    buffer = io.StringIO()
    with mpl.rc_context(figures.STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)  # the same ids would occur in every figure of a page
    # black elements, and those without a colour, are text and lines
    drawn = re.sub(r"(stroke|fill): #000000", r"\1: currentColor", drawn)
    drawn = drawn.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" fill="currentColor" ', 1)
    return Markup(drawn)
