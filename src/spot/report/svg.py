"""From matplotlib's SVG to one that stands alone and one that lives in a page and follows its colours.

Figures are drawn in sentinel colours, one for each role. Afterwards a sentinel becomes either the role's light colour
or a CSS variable that the page defines twice, for light and for dark.
"""

import re
from xml.etree import ElementTree

# Role: (light, dark). Blue and vermilion are told apart with every common colour blindness (after Okabe and Ito);
# no figure relies on hue alone.
PALETTE: dict[str, tuple[str, str]] = {
    "paper": ("#fdfcfa", "#161719"),
    "ink": ("#24262a", "#e4e1da"),
    "muted": ("#62666e", "#a2a4a9"),
    "line": ("#dedbd4", "#35373c"),
    "before": ("#a9adb5", "#6c717b"),
    "after": ("#1f6fb2", "#5aa9e6"),
    "rejected": ("#c4501b", "#ee8b58"),
    "chosen": ("#1f6fb2", "#5aa9e6"),
    "shift": ("#6b4fa0", "#b79ae8"),
}
SENTINEL = {role: f"#fe{index:02x}ed" for index, role in enumerate(PALETTE, start=1)}

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def tidy(raw: str, name: str, title: str, description: str) -> str:
    """Make matplotlib's SVG accessible and safe to put beside others: ids are prefixed with `name`, unused ones go."""
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(raw)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for parent in list(root.iter(f"{{{_SVG}}}defs")):
        for style in parent.findall(f"{{{_SVG}}}style"):  # inline, its rules would apply to the whole page
            parent.remove(style)
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    referenced = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", raw))
    for element in root.iter():
        _tidy_attributes(element, name, referenced)
    # The drawing is sized by its box; a width and height in points would fight with the page.
    width, height = root.attrib["viewBox"].split()[2:]
    root.attrib.update({"width": width, "height": height, "role": "img"})
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    for index, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(index, element)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _tidy_attributes(element: ElementTree.Element, name: str, referenced: set[str]) -> None:
    identity = element.attrib.pop("id", None)
    if identity in referenced:
        element.set("id", f"{name}-{identity}")
    target = element.attrib.pop(f"{{{_XLINK}}}href", None)
    if target is not None:
        element.set("href", f"#{name}-{target.removeprefix('#')}")
    for key, drawn in list(element.attrib.items()):
        value = drawn.replace("url(#", f"url(#{name}-").replace("font-weight: 700", "font-weight: 600")
        element.set(key, re.sub(r"font-family: [^;]*", f"font-family: {_FONT}", value))


def standalone(svg: str) -> str:
    """The light version, complete in itself."""
    for role, sentinel in SENTINEL.items():
        svg = svg.replace(sentinel, PALETTE[role][0])
    return svg


def inline(svg: str) -> str:
    """The version for the page, in its CSS variables `--fig-<role>`."""
    for role, sentinel in SENTINEL.items():
        svg = svg.replace(sentinel, f"var(--fig-{role})")
    return svg


def css_variables() -> tuple[str, str]:
    """Declarations of the figures' colours, for light and for dark."""
    light, dark = ("".join(f"--fig-{role}:{colours[theme]};" for role, colours in PALETTE.items()) for theme in (0, 1))
    return light, dark
