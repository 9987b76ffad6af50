"""The results as tables of Markdown."""

from typing import Any


def table(results: dict[str, Any]) -> str:
    """For the trained networks: the gradient at three steps, and accuracy."""
    last = results["steps"]
    steps = sorted({1, (last + 1) // 2, last})
    return "\n\n".join(
        _table(results[section], f"∂ {what} / ∂ x_t", steps)
        for section, what in [("training", "output_T"), ("pooling", "logits")]
    )


def _table(networks: dict[str, Any], jacobian: str, steps: list[int]) -> str:
    columns = [f"{when}, t = {t}" for when in ("before", "after") for t in steps]
    rows = [[f"‖{jacobian}‖", *columns, "accuracy"], ["---"] * (len(columns) + 2)]
    for name, network in networks.items():
        norms = [network[when][t - 1] for when in ("before", "after") for t in steps]
        shown = [f"{norm:.1e}" for norm in norms]
        rows.append([name, *shown, f"{network['accuracy']:.1%}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
