"""docs/promises.md names tests that exist."""

from __future__ import annotations

import ast
import re

from helpers.files import ROOT


def test_every_promise_has_its_test():
    """A table that points at a test which was renamed promises something that nobody holds."""
    text = (ROOT / "docs" / "promises.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|") and not re.match(r"\| (promise|---)", line)]
    assert len(rows) > 30 and all(re.search(r"`tests/[\w/]+\.py::test_\w+`", row) for row in rows)
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    trees = {file: ast.parse((ROOT / file).read_text()) for file, _ in named}
    for file, name in named:
        assert name in {node.name for node in trees[file].body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
    assert "docs/promises.md" in (ROOT / "README.md").read_text()
