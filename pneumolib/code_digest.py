"""A digest of what Python code does: of the syntax tree without docstrings, so that comments and layout do not count."""

import ast
import functools
import hashlib


@functools.cache
def code_digest(source: str) -> str:
    """16 hex digits. Raises SyntaxError for what is no Python."""
    return text_digest(ast.dump(without_docstrings(source)))


def without_docstrings(source: str) -> ast.Module:
    """The syntax tree of `source`, docstrings taken out."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def text_digest(text: str) -> str:
    """16 hex digits of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
