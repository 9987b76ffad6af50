"""What `import flax_lstm` makes its user wait for, and what imports what."""

import ast
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]

HEAVY = (
    "torch",
    "safetensors",
    "optax",
    "orbax",
    "tensorflow",
    "tensorflow_datasets",
    "matplotlib",
    "sklearn",
)

PROGRAM = """
import sys
import flax.linen
before = set(sys.modules)
import flax_lstm
print(*sorted(n for n in set(sys.modules) - before if "." not in n))
"""


def test_importing_the_package_brings_in_none_of_the_heavy_packages():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    new = done.stdout.split()
    assert "flax_lstm" in new
    assert not set(new) & set(HEAVY)


def test_data_flows_one_way_as_the_readme_says():
    design = (ROOT / "README.md").read_text().partition("## Design")[2]
    rows = [line for line in design.splitlines() if line.startswith("| `")]
    order = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    paths = {path.stem: path for path in (ROOT / "flax_lstm").glob("*.py")}
    del paths["__init__"]
    assert sorted(order) == sorted(paths)
    for name, path in paths.items():
        later = [n for n in imported(path) if order.index(n) >= order.index(name)]
        assert not later, f"{name} imports {later}"


def imported(path):
    """Modules of the package that a file of it imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            package, _, module = (node.module or "").partition(".")
            names = [module] if module else [alias.name for alias in node.names]
            if package == "flax_lstm":
                yield from (n for n in names if (path.parent / f"{n}.py").is_file())
