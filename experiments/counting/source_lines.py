"""Lines of Python files: all of them, and those of code. Files are read and parsed, never imported."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import backbones

BACKBONES = Path(backbones.__file__).parent
DIGEST_CHARACTERS = 12


@dataclass(frozen=True, kw_only=True)
class CountedLines:
    """files and their lines; code_lines leaves out blank lines, comments and docstrings."""

    files: int
    lines: int
    code_lines: int


def files_of(folder: str, root: Path = BACKBONES) -> list[Path]:
    """Python files of `root/folder` and below. Raises ValueError for a folder without any."""
    found = sorted((root / folder).rglob("*.py"))
    if not found:
        there = sorted(path.name for path in root.iterdir() if path.is_dir() and any(path.glob("*.py")))
        raise ValueError(f"there is no Python file in backbones/{folder}; name one of {', '.join(there)}")
    return found


def files_of_mounting(folder: str, mounted_from: str, root: Path = BACKBONES) -> list[Path]:
    """Those of the two folders (which may be one) that import `ttt_core`: without them no TTT is in the backbone."""
    folders = dict.fromkeys((folder, mounted_from))
    return [path for each in folders for path in files_of(each, root) if imports_ttt_core(path)]


def count(files: Sequence[Path]) -> CountedLines:
    """Lines of Python files, all of them and those of code."""
    texts = [path.read_text(encoding="utf-8") for path in files]
    return CountedLines(
        files=len(files),
        lines=sum(len(text.splitlines()) for text in texts),
        code_lines=sum(len(_code_lines(text)) for text in texts),
    )


def sources_digest(folders: Sequence[str], root: Path = BACKBONES) -> str:
    """Changes with any byte, name or number of the Python files of the folders."""
    digest = hashlib.sha256()
    for path in (path for folder in dict.fromkeys(folders) for path in files_of(folder, root)):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:DIGEST_CHARACTERS]


def imports_ttt_core(path: Path) -> bool:
    """Whether the file imports `ttt_core` or a module of it, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
        if any(name.split(".")[0] == "ttt_core" for name in names):
            return True
    return False


_NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def _code_lines(text: str) -> set[int]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {n for token in tokens if token.type not in _NOT_CODE for n in range(token.start[0], token.end[0] + 1)}
    return lines - _bare_string_lines(ast.parse(text))


def _bare_string_lines(tree: ast.Module) -> set[int]:
    """Lines of strings that are statements: docstrings, and those below a constant."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
