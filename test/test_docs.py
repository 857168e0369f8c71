"""Links between the Markdown files: files exist, and headings that anchors name."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LISTED = subprocess.run(
    ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False
)
FILES = [ROOT / name for name in LISTED.stdout.splitlines()]


def prose(path: Path) -> str:
    """Return a Markdown file without its code blocks."""
    return re.sub(r"(?ms)^```.*?^```", "", path.read_text("utf-8"))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a file's headings, as GitHub makes them."""
    titles = re.findall(r"(?m)^#+ +(.*)$", prose(path))
    words = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {text.replace(" ", "-") for text in words}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(path))
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


def test_markdown_files_are_found():
    assert len(FILES) > 10 or not (ROOT / ".git").exists()
