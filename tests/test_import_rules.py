"""Imports go downward only and cfg is read in few places (docs/architecture.md): held by reading the syntax trees."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = "oesir_d2"
REPOSITORY = Path(__file__).resolve().parents[1]

# The parts of the package from the bottom to the top. A part imports itself and parts of lower levels only.
LEVELS = (
    ("structures", "config", "files", "array_pickle"),
    ("layers", "index", "geometry"),
    ("modeling", "data", "evaluation"),
    ("engine", "report"),
    ("web",),
)
# These two rules are narrower than the levels.
NEVER_IMPORTS = {
    "modeling": ("index",),
    "index": ("config",),
    "geometry": ("config",),
}
# Parts that keep to a few libraries besides the standard one, so that they can be used and tested without the others.
ONLY_LIBRARIES = {
    "structures": {"numpy"},
    "index": {"numpy", "faiss", "pymilvus", "milvus_lite", "grpc"},
    "geometry": {"numpy", "cv2"},
    "layers": {"torch", "torchvision", "numpy", "safetensors"},
}
NEVER_LIBRARIES = {"tools", "tests"}
READS_CFG = ("config", "engine")


def find_violations(sources: Mapping[str, str]) -> list[str]:
    """Every broken rule, one line each.

    Args:
        sources: source code by POSIX path relative to the repository, such as "oesir_d2/index/manifest.py".
    """
    modules = {_name_module(path) for path in sources}
    violations = []
    for path, source in sorted(sources.items()):
        tree = ast.parse(source, filename=path)
        part = _get_part(_name_module(path))
        if part and part not in sum(LEVELS, ()):
            violations.append(f"{path}: the part {part!r} has no level; add it to LEVELS")
            continue
        for line, target in dict.fromkeys(_find_imports(tree, path, modules)):
            problem = _judge_import(part, target)
            if problem:
                violations.append(f"{path}:{line}: {problem}")
        if part not in READS_CFG:
            violations += [
                f"{path}:{line}: reads cfg outside of config.py, engine/, from_config, build_* and registered functions"
                for line in _find_cfg_reads(tree)
            ]
    return violations


def _name_module(path: str) -> str:
    name = path.removesuffix(".py").replace("/", ".")
    return name.removesuffix(".__init__")


def _get_part(module: str) -> str:
    """The first name below the package: "index" for oesir_d2.index.manifest, "" for the package itself."""
    return (module.split(".") + [""])[1]


def _find_imports(tree: ast.AST, path: str, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Line and full name of each imported module, at whatever depth of the code it is imported."""
    package = _name_module(path).split(".")
    if not path.endswith("/__init__.py"):
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base_name = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                # "from oesir_d2 import modeling" imports a module, "from oesir_d2.structures import X" a name of one.
                name = f"{base_name}.{alias.name}"
                yield node.lineno, name if name in modules else base_name
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def _judge_import(part: str, target: str) -> str | None:
    """What is wrong with a part's import of a module; None if it is allowed."""
    library = target.split(".")[0]
    if library != PACKAGE:
        if library in NEVER_LIBRARIES:
            return f"the package imports {library}"
        allowed = ONLY_LIBRARIES.get(part)
        if allowed is not None and library not in allowed and library not in sys.stdlib_module_names:
            return f"{part} imports {library}, allowed are the standard library and {', '.join(sorted(allowed))}"
        return None
    target_part = _get_part(target)
    if part == target_part:
        return None
    if target_part in NEVER_IMPORTS.get(part, ()):
        return f"{part} imports {target_part}"
    # The package's own __init__ registers the models: it stands above all parts but the web app.
    if _get_level(target_part) >= _get_level(part):
        return f"{part or PACKAGE} imports {target_part or PACKAGE}, which is not below it"
    return None


def _get_level(part: str) -> float:
    if part == "":
        return len(LEVELS) - 1.5
    return next((level for level, parts in enumerate(LEVELS) if part in parts), len(LEVELS))


def _find_cfg_reads(tree: ast.AST) -> list[int]:
    """Lines that read a key of something called cfg, outside of the functions that build something from it."""
    lines = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if _is_builder(node):
                return
        if isinstance(node, ast.Attribute) and node.attr.isupper() and _is_cfg(node.value):
            lines.append(node.lineno)
        if isinstance(node, ast.Subscript) and _is_cfg(node.value):
            lines.append(node.lineno)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return lines


def _is_builder(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function is from_config, build_*, or registered: a registry calls those with cfg, too."""
    name = function.name.lstrip("_")
    decorators = {ast.unparse(decorator).split("(")[0] for decorator in function.decorator_list}
    return (
        name == "from_config" or name.startswith("build_") or any(d.endswith("_REGISTRY.register") for d in decorators)
    )


def _is_cfg(node: ast.AST) -> bool:
    return (isinstance(node, ast.Name) and node.id == "cfg") or (isinstance(node, ast.Attribute) and node.attr == "cfg")


def test_package_keeps_the_rules() -> None:
    files = sorted((REPOSITORY / PACKAGE).rglob("*.py"))
    assert len(files) > 10
    sources = {file.relative_to(REPOSITORY).as_posix(): file.read_text(encoding="utf-8") for file in files}
    violations = find_violations(sources)
    assert not violations, "\n" + "\n".join(violations)


ALLOWED = {
    "oesir_d2/structures.py": "import numpy as np\nfrom dataclasses import dataclass",
    "oesir_d2/index/search.py": "import faiss\nfrom oesir_d2.structures import NO_CLASS\nfrom ..files import x",
    "oesir_d2/index/milvus.py": "def f():\n    import pymilvus",
    "oesir_d2/files.py": "import os",
    "oesir_d2/geometry/verify.py": "import cv2\nimport numpy.typing as npt",
    "oesir_d2/layers/pooling.py": "from torch import nn\nfrom torchvision.ops import roi_align",
    "oesir_d2/modeling/__init__.py": "from . import teacher\nfrom .teacher import T\nfrom ..layers import pooling",
    "oesir_d2/modeling/teacher.py": "import detectron2\n"
    "class T:\n    @classmethod\n    def from_config(cls, cfg):\n        return {'a': cfg.MODEL.A}\n"
    "    def f(self, cfg):\n        return build_t(cfg.clone())\n"
    "def build_t(cfg):\n    return (lambda: cfg.MODEL.B)()\n"
    "@T_REGISTRY.register()\ndef T(cfg):\n    return cfg.MODEL.C",
    "oesir_d2/evaluation/splices.py": "from oesir_d2.index.search import f\nfrom ..geometry.verify import g",
    "oesir_d2/engine/embedder.py": "from oesir_d2.modeling import teacher\ndef f(cfg):\n    return cfg.INPUT.A",
    "oesir_d2/__init__.py": "from oesir_d2 import modeling\nfrom oesir_d2.config import add_oesir_config",
    "oesir_d2/config.py": "from detectron2.config import CfgNode\ndef add(cfg):\n    cfg.INDEX = 1",
    "oesir_d2/web/app.py": "import gradio\nimport oesir_d2\nfrom oesir_d2.engine import embedder",
}


def test_checker_allows_what_the_rules_allow() -> None:
    assert find_violations(ALLOWED) == []


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        ("oesir_d2/structures.py", "from oesir_d2.layers.pooling import x", "structures imports layers"),
        ("oesir_d2/structures.py", "import torch", "structures imports torch"),
        ("oesir_d2/index/x.py", "import torch", "index imports torch"),
        ("oesir_d2/index/x.py", "def f():\n    from detectron2.config import CfgNode", "index imports detectron2"),
        ("oesir_d2/index/x.py", "from oesir_d2.config import add_oesir_config", "index imports config"),
        ("oesir_d2/index/x.py", "from ..layers.pooling import x", "index imports layers"),
        ("oesir_d2/geometry/x.py", "import faiss", "geometry imports faiss"),
        ("oesir_d2/geometry/x.py", "from PIL import Image", "geometry imports PIL"),
        ("oesir_d2/layers/x.py", "import detectron2.layers", "layers imports detectron2"),
        ("oesir_d2/modeling/x.py", "from oesir_d2.index.search import f", "modeling imports index"),
        ("oesir_d2/modeling/x.py", "from .. import data", "modeling imports data"),
        ("oesir_d2/modeling/x.py", "if TYPE_CHECKING:\n    import oesir_d2.evaluation.splices", "imports evaluation"),
        ("oesir_d2/modeling/deep/x.py", "from ...data import x", "modeling imports data"),
        ("oesir_d2/modeling/__init__.py", "from ..evaluation import x", "modeling imports evaluation"),
        ("oesir_d2/evaluation/x.py", "from oesir_d2 import modeling", "evaluation imports modeling"),
        ("oesir_d2/data/x.py", "from oesir_d2.engine import embedder", "data imports engine"),
        ("oesir_d2/report/x.py", "from oesir_d2.engine import embedder", "report imports engine"),
        ("oesir_d2/engine/x.py", "from oesir_d2.web import app", "engine imports web"),
        ("oesir_d2/engine/x.py", "from oesir_d2 import add_oesir_config", "engine imports oesir_d2"),
        ("oesir_d2/engine/x.py", "from tools.search import main", "imports tools"),
        ("oesir_d2/engine/x.py", "import importlib\nimportlib.import_module('tools.search')", "imports tools"),
        ("oesir_d2/__init__.py", "from oesir_d2 import web", "oesir_d2 imports web"),
        ("oesir_d2/misc/x.py", "", "'misc' has no level"),
        ("oesir_d2/modeling/x.py", "def f(cfg):\n    return cfg.MODEL.WEIGHTS", "x.py:2: reads cfg"),
        ("oesir_d2/modeling/x.py", "class A:\n    def f(self):\n        return self.cfg.MODEL", "x.py:3: reads cfg"),
        ("oesir_d2/modeling/x.py", "def f(cfg):\n    return cfg['MODEL']", "reads cfg"),
        ("oesir_d2/modeling/x.py", "@cached\ndef f(cfg):\n    return cfg.MODEL", "x.py:3: reads cfg"),
        ("oesir_d2/data/x.py", "def rebuild_x(cfg):\n    cfg.MODEL = 1", "reads cfg"),
    ],
)
def test_checker_finds_what_the_rules_forbid(path: str, source: str, words: str) -> None:
    sources = {**ALLOWED, "oesir_d2/data/__init__.py": "", "oesir_d2/evaluation/__init__.py": "", path: source}
    sources["oesir_d2/web/__init__.py"] = ""
    (violation,) = find_violations(sources)
    assert words in violation
    assert violation.startswith(path)
