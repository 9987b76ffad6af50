"""How `sphinx-build` makes pages of the guide and of the docstrings."""

import inspect
import re

import flax.linen as nn

project = "flax_lstm"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
html_theme = "furo"
html_show_copyright = False  # There is a licence.
# A `name` in a docstring is code, and a link where it is one of ours.
default_role = "py:obj"
# The docstrings give shapes and dtypes, of which types know nothing.
autodoc_typehints = "none"


def constructor(app, what, name, obj, options, signature, returned):
    """The arguments of a Linen module, without those that are Linen's own."""
    if not (inspect.isclass(obj) and issubclass(obj, nn.Module)):
        return signature, returned
    shown = inspect.signature(obj)
    arguments = [
        argument.replace(annotation=argument.empty)
        for argument in shown.parameters.values()
        if argument.name not in ("parent", "name")
    ]
    text = str(shown.replace(parameters=arguments, return_annotation=shown.empty))
    return re.sub("<class '(.*?)'>", r"\1", text), returned


def setup(app):
    app.connect("autodoc-process-signature", constructor)
