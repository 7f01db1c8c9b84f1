"""The messages that docs/runbook.md quotes are messages of the server."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT_CODE = re.sub(r"(?s)```.*?```|`[^`]*`|^\* ", "", (ROOT / "docs" / "runbook.md").read_text(), flags=re.MULTILINE)
QUOTES = sorted(set(re.findall(r"(?<!\*)\*([^* ][^*]*)\*(?!\*)", " ".join(WITHOUT_CODE.split()))) - {"italics"})
# Adjacent string literals are one message; a placeholder is %d, %s or {...} in the source.
SOURCE = re.sub(r'"\s+f?"', "", "\n".join(path.read_text() for path in sorted((ROOT / "service").rglob("*.py"))))


def test_the_page_quotes_messages() -> None:
    assert len(QUOTES) >= 8


@pytest.mark.parametrize("quote", QUOTES)
def test_the_server_has_this_message(quote: str) -> None:
    words = re.escape(quote).replace(r"\.\.\.", r"[^\n]+?").replace(r"process\ N\ ", r"process\ (?:%d|\{\w+\})\ ")
    assert re.search(words, SOURCE), f"no message like {quote!r} in service/: change the runbook with it"
