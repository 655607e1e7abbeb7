"""Matplotlib figures as inline SVG whose colours follow the page."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

# A figure is drawn in stand-in colours, one per role; the SVG then names a CSS variable instead.
STEPS = 24
ROLES = ("ink", "muted", "rule", "c1", "c2", "c3")
COLOR = {role: f"#a1{index:02x}5a" for index, role in enumerate(ROLES)}
DEPTH = [f"#a2{step:02x}5a" for step in range(STEPS)]
HEAT = [f"#a3{step:02x}5a" for step in range(STEPS)]
VARIABLES = {color: f"var(--{role})" for role, color in COLOR.items()}
VARIABLES |= {color: f"var(--depth-{step})" for step, color in enumerate(DEPTH)}
VARIABLES |= {color: f"var(--heat-{step})" for step, color in enumerate(HEAT)}

COLORED = re.compile(r"#[0-9a-f]{6}")
FAMILY = re.compile(r"font-family: [^;]+; ?")
SHORTHAND = re.compile(r"\bfont: ([\d.]+px) [^;]+")  # what matplotlib < 3.9 writes
DECIMALS = re.compile(r"-?\d+\.\d{2,}")
REFERENCE = re.compile(r"^(url\(#|#)([^)]+)")
STYLE = "{http://www.w3.org/2000/svg}style"

RC: Any = {  # the keys that matplotlib's stubs allow differ by version
    "axes.edgecolor": COLOR["muted"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": COLOR["ink"],
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "font.size": 9.0,
    "grid.color": COLOR["rule"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.0,
    "svg.fonttype": "none",
    "text.color": COLOR["ink"],
    "text.parse_math": False,
    "xtick.color": COLOR["muted"],
    "xtick.labelcolor": COLOR["ink"],
    "xtick.labelsize": 8.5,
    "ytick.color": COLOR["muted"],
    "ytick.labelcolor": COLOR["ink"],
    "ytick.labelsize": 8.5,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw inside with the report's settings whatever the user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # A layer name in a script DejaVu lacks is measured wrong, and drawn by the browser right.
        warnings.filterwarnings("ignore", message=".*missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


def to_svg(figure: Figure, prefix: str, label: str) -> str:
    """Return `figure` as an SVG element to be put into a page.

    Args:
        figure: Drawn in the colours of this module.
        prefix: Put before every id, so that several figures share one page.
        label: What a screen reader says.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(buffer.getvalue(), prefix, label)


def _inline(svg: str, prefix: str, label: str) -> str:
    tree = ElementTree.fromstring(svg)
    children = [child for child in tree if _tag(child) != "metadata" and child.find(STYLE) is None]
    used = {name for node in tree.iter() for value in node.attrib.values() for name in _refs(value)}
    for node in tree.iter():
        node.tag = _tag(node)
        node.attrib = dict(_attributes(node.attrib, used, prefix))
        node.text, node.tail = (node.text or "").strip() or None, None
    view = {"role": "img", "aria-label": label, "viewBox": tree.attrib["viewBox"]}
    root = ElementTree.Element("svg", view)
    root.extend(children)
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(old: dict[str, str], used: set[str], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in old.items():
        if name == "id":
            if value in used:
                yield name, f"{prefix}-{value}"
        elif name == "style":
            themed = COLORED.sub(lambda found: VARIABLES.get(found[0], found[0]), value)
            yield name, SHORTHAND.sub(r"font-size: \1", FAMILY.sub("", themed))
        elif name in ("d", "x", "y", "transform", "width", "height"):
            if "rotate(-0 " not in value:
                yield name, DECIMALS.sub(lambda found: f"{float(found[0]):.2f}", value)
        else:
            yield name.split("}")[-1], REFERENCE.sub(rf"\1{prefix}-\2", value)


def _refs(value: str) -> list[str]:
    return [name for _, name in REFERENCE.findall(value)]


def _tag(node: ElementTree.Element) -> str:
    return node.tag.split("}")[-1]
