"""Quality gates: bounds in a recipe that results have to keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from finetune.errors import FinetuneError, GateFailed
from finetune.recipe import Gate


def check_gates(gates: Iterable[Gate], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each gate with the value found, whether it holds and by how much (negative: it fails by that much)."""
    checked = []
    for gate in gates:
        value = _look_up(results, gate)
        margin = value - gate.bound if gate.comparison.startswith(">") else gate.bound - value
        checked.append({"gate": str(gate), "value": value, "margin": margin, "holds": gate.holds(value)})
    return checked


def _look_up(results: Mapping[str, Any], gate: Gate) -> float:
    """Follow `accuracy`, `accuracy.low` or `agreement` into the results; a bare metric means its point estimate."""
    found: Any = results
    for key in gate.keys:
        if not isinstance(found, Mapping) or key not in found:
            raise FinetuneError(f"gates.{gate.path}: expected a result of that name; found {', '.join(results)}")
        found = found[key]
    value = found["value"] if isinstance(found, Mapping) and "value" in found else found
    if not isinstance(value, (int, float)):
        raise FinetuneError(f"gates.{gate.path}: names no single number")
    return float(value)


def require(checked: Iterable[Mapping[str, Any]]) -> None:
    """Raise GateFailed if a gate does not hold."""
    failed = [gate for gate in checked if not gate["holds"]]
    if failed:
        lines = [
            f"  {gate['gate']}: found {gate['value']:.4f}, {abs(gate['margin']):.4f} short of it" for gate in failed
        ]
        raise GateFailed("\n".join([f"{len(failed)} quality gate{'s' * (len(failed) > 1)} failed:", *lines]))
