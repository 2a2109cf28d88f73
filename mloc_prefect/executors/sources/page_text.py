"""The visible text of HTML pages, in one pass: pages are written by others, and time must not grow faster than they do.

`html.parser` of the standard library takes time with the square of the length for some broken pages, and fails for
others. So this reads tags only as far as their text needs it. Standard library only.
"""

from __future__ import annotations

import html
import re

MOST = 2_000_000
"""Characters of a page that are read."""

_HIDDEN = frozenset({"noscript", "template", "svg"})
_RAW = frozenset({"script", "style"})
"""What has text of other languages in it, up to its end tag."""

_RAW_ENDS = {name: re.compile(f"</{name}", re.IGNORECASE) for name in _RAW}
_INLINE = frozenset({"a", "b", "i", "em", "strong", "span", "code", "small", "sub", "sup", "u", "abbr"})
_NAME = re.compile(r"/?[A-Za-z][^\s/>]*")
_STOP = re.compile("[>\"']")
_HREF = re.compile(r"""\shref=(?:"([^"]*)"|'([^']*)'|([^\s>"']+))""", re.IGNORECASE)
_GAPS = re.compile(r"\n{3,}")
_LINKS = ("http://", "https://", "/")


def page_text(page: str) -> str:
    """Return the visible text of a page, with the targets of its links, one line for each line that is not empty.

    Args:
        page: Its HTML; what is after the first `MOST` characters is left out, with a note.
    """
    reader = _PageReader(links=True)
    reader.read(page[:MOST])
    lines = (" ".join(line.split()) for line in "".join(reader.parts).splitlines())
    note = [f"... cut: the page has {len(page)} characters, and {MOST} were read"] if len(page) > MOST else []
    return "\n".join([*(line for line in lines if line), *note])


def document_text_of(page: str) -> str:
    """Return the visible text of a whole page, with an empty line between paragraphs and without targets of links."""
    reader = _PageReader(links=False)
    reader.read(page)
    lines = (" ".join(line.split()) for line in "".join(reader.parts).splitlines())
    return _GAPS.sub("\n\n", "\n".join(lines)).strip()


class _PageReader:
    """Collects text; every search begins where the last one ended, and one that finds nothing is the last.

    Args:
        links: Whether the targets of links follow their text.
    """

    def __init__(self, *, links: bool) -> None:
        self._shows_links = links
        self.parts: list[str] = []
        self._hidden = 0
        self._links: list[str] = []

    def read(self, page: str) -> None:
        """Read a whole page."""
        at = 0
        while (begin := page.find("<", at)) >= 0:
            self._text(page[at:begin])
            name = _NAME.match(page, begin + 1)
            if name is not None:
                at = _tag_end(page, name.end())
                at = self._tag(name[0].lower(), page, name.end(), at)
            elif page.startswith("<!--", begin):
                at = _after(page, "-->", begin + 4)
            elif page.startswith(("<!", "<?", "</"), begin):
                at = _after(page, ">", begin + 2)
            else:
                self._text("<")
                at = begin + 1
        self._text(page[at:])

    def _text(self, text: str) -> None:
        if self._hidden or not text:
            return
        try:
            self.parts.append(html.unescape(text))
        except ValueError:  # a character reference with thousands of digits
            self.parts.append(text)

    def _tag(self, name: str, page: str, begin: int, end: int) -> int:
        """Take a tag, and return where to read on."""
        if name in _RAW:
            found = _RAW_ENDS[name].search(page, end)
            return _after(page, ">", found.end()) if found else len(page)
        if name in _HIDDEN:
            self._hidden += not page.startswith("/>", end - 2)
        elif name[1:] in _HIDDEN and name[0] == "/":
            self._hidden = max(0, self._hidden - 1)
        if name == "a" and self._shows_links:
            target = _HREF.search(page, begin, end)
            self._links.append(next(filter(None, target.groups()), "") if target else "")
        elif name == "/a" and self._links:
            link = self._links.pop()
            self._text(f" ({link})" if link.startswith(_LINKS) else "")
        elif name.removeprefix("/") not in _INLINE:
            self._text("\n")
        return end


def _tag_end(page: str, at: int) -> int:
    """Return where a tag ends; a `>` in a quoted value of an attribute does not end it."""
    while found := _STOP.search(page, at):
        at = found.end()
        if found[0] == ">":
            return at
        if page[found.start() - 1] == "=":
            at = _after(page, found[0], at)
    return len(page)


def _after(page: str, text: str, at: int) -> int:
    """Return what follows the next `text`, the end of the page if there is none."""
    found = page.find(text, at)
    return len(page) if found < 0 else found + len(text)
