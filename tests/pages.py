"""Parses README.md and docs/*.md."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """Returns the fenced code blocks in a language."""
    return [body for found, body in _FENCE.findall(text_of(page)) if found == language]


def prose(text: str) -> str:
    """Returns a page without code, comments and addresses, but with the output of programs (`text` blocks)."""
    text = _FENCE.sub(lambda found: found[2] if found[1] == "text" else "", text)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    return re.sub(r"`[^`\n]*`|\]\([^)]*\)", " ", text)


def rows(text: str) -> list[list[str]]:
    """Returns the rows of all tables, as cells."""
    lines = [line for line in text.splitlines() if line.startswith(("| ", "||"))]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def links(text: str) -> list[str]:
    """Returns the relative addresses of all links."""
    return [found for found in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in found]
