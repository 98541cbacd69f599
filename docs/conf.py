"""How Sphinx makes the documentation: ``make docs`` builds it into ``build/docs``.

Nothing here needs the network. Pages with code cells are executed at every build.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import metaweight
from metaweight import engines, problems

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

# Networks on these pages are small: a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")

project = "metaweight"
author = "The metaweight developers"
copyright = author
version = release = metaweight.__version__

sys.path.insert(0, str(Path(__file__).parent))
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "html_links"]
html_theme = "furo"
html_title = "metaweight"
html_static_path = ["_static"]
html_css_files = ["frames.css"]
exclude_patterns = ["images"]

PACKAGES = (
    *("problems", "engines", "products", "weighting", "averaging", "ensembles"),
    *("consistency", "noise", "data", "models", "plots", "integrations", "lm"),
)
EXPORTED = {name for room in PACKAGES for name in import_module(f"metaweight.{room}").__all__}

# A reference that names something of ours must lead somewhere; torch's names are plain text.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!metaweight\.).*")]

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
# What pages write stays out of the folder of the pages.
nb_execution_in_temp = True
# A page that compares with another package is shown without results where that is missing.
PEERS = ("betty", "higher", "torchopt")
nb_execution_excludepatterns = [f"migrate/{peer}.md" for peer in PEERS if find_spec(peer) is None]
# Only a kernel says what language such a page is in.
suppress_warnings = ["myst-nb.lexer"] if nb_execution_excludepatterns else []
myst_enable_extensions = ["colon_fence", "substitution", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": True}
maximum_signature_line_length = 100
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Shapes"]


def _exports() -> str:
    """Return what ``import metaweight`` offers, as a list of references."""
    lines = []
    for name in metaweight.__all__:
        room = next((m for m in (problems, engines) if name in m.__all__), None)
        if room is not None:
            lines.append(f"{{py:obj}}`~{room.__name__}.{name}`")
    return ", ".join(lines) + "."


myst_substitutions = {"exports": _exports()}


def _is_inner(name: str) -> bool:
    """Whether something has that name and no page of its own: it may be named, without a link."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        return False
    return name.rpartition(".")[2] not in EXPORTED


def find_public(app: Sphinx, env: BuildEnvironment, node: Element, text: Element) -> Any:
    """Lead a reference to where its last name is documented.

    Docstrings and annotations name objects by the module that defines them; the pages show them
    under the package that exports them.
    """
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    target = str(node["reftarget"])
    last = target.rpartition(".")[2]
    found = sorted(
        (name for name, *_ in domain.get_objects() if name.rpartition(".")[2] == last), key=len
    )
    # Methods share their names; classes and functions do not.
    if found and last in EXPORTED:
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, text)
    return text if _is_inner(target) else None


def setup(app: Sphinx) -> None:
    """Join Sphinx's run."""
    app.connect("missing-reference", find_public)
