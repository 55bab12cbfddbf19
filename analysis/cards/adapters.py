"""What this repository has for a model: lines counted in its source files, which are read and never imported."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

from analysis.cards.schema import Card

ROOT = Path(__file__).parents[2]
BACKBONES = ROOT / "backbones"


@dataclass(frozen=True, kw_only=True)
class CountedLines:
    """files and their lines; code_lines leaves out blank lines, comments and docstrings."""

    files: int
    lines: int
    code_lines: int


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """all: the whole folder. with_ttt: files of it that import `ttt_core`. is_loadable: by `load_backbone`."""

    all: CountedLines
    with_ttt: CountedLines
    is_loadable: bool


def adapter_of(card: Card, backbones: Path = BACKBONES) -> Adapter | None:
    """What is counted for a model; None where it has no folder under `backbones/`."""
    folder = backbones / card.adapter
    if not card.adapter or not folder.is_dir():
        return None
    return counted_folder(folder, is_loadable=card.name in loadable_names(backbones / "__init__.py"))


def counted_folder(folder: Path, is_loadable: bool = False) -> Adapter:
    """What is counted in a folder of source files and those below it."""
    files = sorted(folder.rglob("*.py"))
    with_ttt = [path for path in files if _imports_ttt_core(path)]
    return Adapter(all=count(files), with_ttt=count(with_ttt), is_loadable=is_loadable)


def count(files: list[Path]) -> CountedLines:
    """Lines of Python files, all of them and those of code."""
    texts = [path.read_text(encoding="utf-8") for path in files]
    return CountedLines(
        files=len(files),
        lines=sum(len(text.splitlines()) for text in texts),
        code_lines=sum(len(_code_lines(text)) for text in texts),
    )


def loadable_names(init: Path) -> tuple[str, ...]:
    """Names that `load_backbone` takes: the literal BACKBONES in `backbones/__init__.py`."""
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "BACKBONES" for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            names = node.value.keys if isinstance(node.value, ast.Dict) else getattr(node.value, "elts", [])
            return tuple(str(name.value) for name in names if isinstance(name, ast.Constant))
    raise ValueError(f"{init} names no BACKBONES; the names that load_backbone takes are read from there")


def mountable_families(backbones: Path = BACKBONES) -> tuple[str, ...]:
    """transformers' families that `mount` opens: the model types of `backbones/mounting/families.py`."""
    families = backbones / "mounting" / "families.py"
    found = re.findall(r'^\s+model_type = "ttt_(\w+)"', families.read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise ValueError(f"{families} has no line 'model_type = \"ttt_...\"'; the families are read from there")
    return tuple(found)


def where_ttt_mounts(card: Card, families: tuple[str, ...]) -> str:
    """In words: the layers that `mount` can open in this model, or why there are none."""
    layers = f"layers 0-{card.decoder.layers - 1}"
    if card.hosts == "moshi":
        return f"{layers} of the temporal transformer (backbones/moshi); never the depth transformer"
    if card.hosts in families:
        return f"{layers} of the language model (backbones/mounting, family {card.hosts})"
    return f"nowhere yet: its language model is of family {card.hosts}, and mount opens {', '.join(families)}"


def _imports_ttt_core(path: Path) -> bool:
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
