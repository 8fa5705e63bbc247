"""Quality gates: bounds in a recipe that results have to keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from finetune.errors import FinetuneError, GateFailed
from finetune.recipe import Gate


def check_gates(gates: Iterable[Gate], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each gate with the value found, whether it holds and by how much (negative: it fails by that much)."""
    checked: list[dict[str, Any]] = []
    for gate in gates:
        value = _look_up(results, gate)
        if value is None:  # what is not defined keeps no bound
            checked.append({"gate": str(gate), "value": None, "margin": None, "holds": False})
            continue
        margin = value - gate.bound if gate.comparison.startswith(">") else gate.bound - value
        checked.append({"gate": str(gate), "value": value, "margin": margin, "holds": gate.holds(value)})
    return checked


def _look_up(results: Mapping[str, Any], gate: Gate) -> float | None:
    """Follow `accuracy`, `accuracy.low` or `agreement` into the results; a bare metric means its point estimate.

    A result that is not defined on these rows is None.
    """
    found: Any = results
    for key in gate.keys:
        if not isinstance(found, Mapping) or key not in found:
            raise FinetuneError(f"gates.{gate.path}: expected a result of that name; found {', '.join(results)}")
        found = found[key]
    value = found["value"] if isinstance(found, Mapping) and "value" in found else found
    if value is None:
        return None
    if not isinstance(value, (int, float)):
        raise FinetuneError(f"gates.{gate.path}: names no single number")
    return float(value)


def require(checked: Iterable[Mapping[str, Any]]) -> None:
    """Raise GateFailed if a gate does not hold."""
    failed = [gate for gate in checked if not gate["holds"]]
    if failed:
        lines = [f"  {gate['gate']}: {_found(gate)}" for gate in failed]
        raise GateFailed("\n".join([f"{len(failed)} quality gate{'s' * (len(failed) > 1)} failed:", *lines]))


def _found(gate: Mapping[str, Any]) -> str:
    if gate["value"] is None:
        return "not defined on these rows"
    return f"found {gate['value']:.4f}, {abs(gate['margin']):.4f} short of it"
