"""What the documentation's pages hold: links, anchors, examples and the comments that say how an example is checked.

An example is a fenced block in `python`, `bash`, `yaml` or `json`. A comment right before it changes its check:

- `<!-- not run: REASON -->`: it is not checked;
- `<!-- output: below -->`: the next block is its output, which is compared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "deploy").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("README.md")),
)
WITH_EXAMPLES = tuple(page for page in PAGES if "benchmarks" not in page.relative_to(ROOT).parts)
LANGUAGES = ("python", "bash", "yaml", "json")
URL = "http://127.0.0.1:8000"

_COMMENT = re.compile(r"<!-- (.*?) -->\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Example:
    """One fenced block.

    Attributes:
        place: page and line, for messages.
        language: word behind the fence.
        text: what is between the fences.
        not_run: why it is not checked, empty when it is.
        output: what it prints, None where the page does not say.
    """

    place: str
    language: str
    text: str
    not_run: str = ""
    output: str | None = None

    @property
    def is_request(self) -> bool:
        """Whether it talks to a server: Python that names it, curl, `try`, or the page's own function `ask`."""
        if self.language == "python":
            return URL in self.text
        asks = r"\bcurl\b|\bvllm-prune try |^ask "
        return self.language == "bash" and re.search(asks, self.text, re.MULTILINE) is not None


@lru_cache
def tokens(page: Path) -> tuple[Token, ...]:
    """A page, parsed as CommonMark with tables."""
    return tuple(MarkdownIt("commonmark").enable("table").parse(page.read_text()))


def name(page: Path) -> str:
    """A page's path below the root."""
    return str(page.relative_to(ROOT))


def examples(page: Path, *languages: str) -> list[Example]:
    """The page's examples in the given languages, outputs of other examples aside."""
    blocks = [token for token in tokens(page) if token.type in ("fence", "html_block")]
    collected, taken = [], None
    for index, block in enumerate(blocks):
        if block.type == "fence" and block is not taken:
            before = blocks[index - 1] if index else None
            marks = _marks(before) if before is not None and _adjacent(before, block) else {}
            after = next((later for later in blocks[index + 1 :] if later.type == "fence"), None)
            taken = after if "output" in marks else None
            collected.append(
                Example(
                    f"{name(page)}:{(block.map or [0])[0] + 1}", block.info.strip(), block.content,
                    marks.get("not run", ""), taken.content if taken else None,
                )
            )  # fmt: skip
    return [one for one in collected if not languages or one.language in languages]


def _adjacent(comment: Token, fence: Token) -> bool:
    return comment.type == "html_block" and bool(comment.map and fence.map and comment.map[1] == fence.map[0])


def _marks(comment: Token) -> dict[str, str]:
    match = _COMMENT.search(comment.content)
    key, _, value = match[1].partition(": ") if match else ("", "", "")
    return {key: value} if value else {}


def inline(page: Path) -> list[Token]:
    """Links, images and pieces of code within the text."""
    return [child for token in tokens(page) for child in token.children or ()]


def links(page: Path) -> list[str]:
    """Targets of links and images."""
    targets = [child.attrGet("href") or child.attrGet("src") for child in inline(page)]
    return [str(target) for target in targets if target]


def codes(page: Path) -> list[str]:
    """Pieces of code within the text."""
    return [child.content for child in inline(page) if child.type == "code_inline"]


@lru_cache
def anchors(page: Path) -> frozenset[str]:
    """Anchors of a page's headings, as GitHub and GitLab make them."""
    collected: list[str] = []
    parsed = tokens(page)
    for opening, content in pairwise(parsed):
        if opening.type == "heading_open":
            text = "".join(child.content for child in content.children or ())
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            same = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in collected)
            collected.append(f"{slug}-{same}" if same else slug)
    return frozenset(collected)
