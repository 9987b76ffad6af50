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
    order = [n for row in rows for n in re.findall(r"`([\w/]+)`", row.split("|")[1])]
    require_one_way("flax_lstm", order)


def test_the_experiments_import_one_way_as_their_docstring_says():
    described = ast.get_docstring(
        ast.parse((ROOT / "experiments/__init__.py").read_text())
    )
    commands, _, layers = described.partition("Each file below")
    commands = commands.partition("Commands:")[2]
    order = re.findall(r"`([\w/]+)`", layers) + re.findall(r"`([\w/]+)`", commands)
    require_one_way("experiments", order)


def require_one_way(package, order):
    """Every file of `package` is in `order`, itself or its folder, and so are imports.

    A folder stands for all in it: what imports what there is not looked at.
    """
    root = ROOT / package

    def place(name):
        folder = f"{name.partition('/')[0]}/"
        return folder if folder in order else name

    names = [str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.py")]
    names = [name for name in names if "__" not in name]
    assert {place(name) for name in names} == set(order)
    for name in names:
        for other in imported(package, root / f"{name}.py"):
            one, two = place(name), place(other)
            below = order.index(two) < order.index(one)
            assert below or (one == two != name), f"{name} imports {other}"


def imported(package, path):
    """Modules of `package` that a file of it imports, such as `native/library`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = node.module or ""
        if module != package and not module.startswith(f"{package}."):
            continue
        base = module[len(package) :].replace(".", "/").lstrip("/")
        if (ROOT / package / f"{base}.py").is_file():
            yield base
        for alias in node.names:
            name = f"{base}/{alias.name}".lstrip("/")
            if (ROOT / package / f"{name}.py").is_file():
                yield name
