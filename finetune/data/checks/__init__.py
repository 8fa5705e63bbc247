"""Checks: what is suspicious about the rows after cleaning and de-duplication; they report and change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from finetune.data.checks.inputs import EXAMPLES_KEPT, CheckInput, Outcome, Severity
from finetune.registry import checks

__all__ = ["CheckInput", "Finding", "Outcome", "Severity", "run_checks"]

_ORDER: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that a check found: how grave it is, how much of it there is, one sentence, and at most 5 examples."""

    check: str
    severity: Severity
    count: int
    message: str
    examples: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Return it as it stands in `report.json`."""
        return asdict(self)


def run_checks(rows: CheckInput, settings: Mapping[str, tuple[str | None, Mapping[str, Any]]]) -> list[Finding]:
    """Run every check that fits the rows' target; return what was found: errors, warnings, notes, then by name.

    `settings` has, by the check's name, a severity for all that the check finds (`off`: the check does not run; None:
    its own) and options. Raises FinetuneError for an unknown name and pydantic's ValidationError for unfit options.
    """
    for name in settings:
        checks.get(name)
    found = [finding for name in checks.names() for finding in _run(rows, name, *settings.get(name, (None, {})))]
    return sorted(found, key=lambda finding: _ORDER.index(finding.severity))


def _run(rows: CheckInput, name: str, severity: str | None, options: Mapping[str, Any]) -> list[Finding]:
    entry = checks.get(name)
    kinds = entry.attributes.get("kinds")
    if severity == "off" or (kinds is not None and rows.target_kind not in kinds):
        return []
    checked = entry.options.model_validate(dict(options)).model_dump()
    outcomes: list[Outcome] = entry.target(rows, **checked)
    findings = []
    for outcome in outcomes:
        chosen = severity or outcome.severity or entry.attributes["severity"]
        assert chosen in _ORDER, f"{name}: unknown severity {chosen!r}"
        examples = [dict(example) for example in outcome.examples[:EXAMPLES_KEPT]]
        findings.append(Finding(name, chosen, int(outcome.count), outcome.message, examples))
    return findings
