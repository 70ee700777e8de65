"""HTML pages that are one file each: no network, no scripts, pictures inside."""

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
        finalize=_shown,
    )
    environment.filters["percent"] = percent
    environment.filters["amount"] = lambda number: f"{number:,}"
    return environment


def _shown(value: Any) -> Any:
    """Names of files may hold bytes that are no text."""
    return drawable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def percent(share: float, digits: int = 1) -> str:
    """0.935 as 93.5 %."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def thumbnail(path: str | Path, side: int = SIDE) -> Markup | None:
    """An `<img>` of a picture file, upright and small; None if it cannot be read."""
    try:
        image = decode.load_image(path)
    except decode.BadImageError:
        return None
    image.thumbnail((side, side))
    return inline_image(image, Path(path).name)


def inline_image(image: Image.Image, what: str) -> Markup:
    """An `<img>` with the picture in it.

    Args:
        what: for those who cannot see it.
    """
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img src="data:image/jpeg;base64,{}" alt="{}" width="{}" height="{}">').format(
        data, drawable(what), *image.size
    )


def svg(figure: Figure, what: str) -> Markup:
    """A figure as an `<svg>` that takes the colour of the text around it.

    Args:
        what: its name for those who cannot see it.
    """
    buffer = io.StringIO()
    with mpl.rc_context(figures.STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)  # the same names would stand in every figure of a page
    # what is black, or has no colour of its own, is text and lines
    drawn = re.sub(r"(stroke|fill): #000000", r"\1: currentColor", drawn)
    drawn = drawn.replace("<svg ", f'<svg role="img" aria-label="{escape(what)}" fill="currentColor" ', 1)
    return Markup(drawn)
