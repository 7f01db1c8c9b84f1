"""`make audit` never takes silence for a clean answer."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy import audit

CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
SKIPPED = {"name": "idna", "skip_reason": "Dependency not found on PyPI and could not be audited: idna (3.20)"}
AFFECTED = {
    "name": "pillow",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"]}],
}


@pytest.fixture
def exceptions(tmp_path: Path) -> Path:
    path = tmp_path / "audit.toml"
    path.write_text("")
    return path


def answer(exceptions: Path, *packages: dict[str, object]) -> tuple[int, str]:
    lines: list[str] = []
    code = audit.audit(exceptions, lambda _: json.dumps({"dependencies": packages, "fixes": []}), lines.append)
    return code, "\n".join(lines)


def test_packages_without_vulnerabilities_are_clean(exceptions: Path) -> None:
    code, text = answer(exceptions, CLEAN)
    assert (code, "1 packages" in text) == (0, True)


def test_a_vulnerability_is_told_with_the_version_that_fixes_it(exceptions: Path) -> None:
    assert answer(exceptions, CLEAN, AFFECTED) == (1, "pillow 1.0: PYSEC-1, fixed in 1.1")


def test_an_exception_has_a_reason_and_ends_with_its_vulnerability(exceptions: Path) -> None:
    exceptions.write_text('[[exception]]\nid = "CVE-1"\nreason = "not called"\n')
    code, text = answer(exceptions, AFFECTED)
    assert (code, "accepted: not called" in text) == (0, True)
    assert answer(exceptions, CLEAN) == (1, "audit.toml: CVE-1 is reported no longer; remove it")


@pytest.mark.parametrize("output", ["", "Traceback", json.dumps({"dependencies": [SKIPPED]})])
def test_an_index_that_does_not_answer_is_told_and_not_clean(output: str, exceptions: Path) -> None:
    asked: list[Sequence[str]] = []
    lines: list[str] = []
    assert audit.audit(exceptions, lambda command: asked.append(command) or output, lines.append) == 3
    assert lines[0].startswith("not reachable")
    assert [command[command.index("--vulnerability-service") + 1] for command in asked] == ["osv", "pypi"]


def test_an_audit_that_hangs_is_ended(exceptions: Path) -> None:
    def hang(command: Sequence[str]) -> str:
        raise subprocess.TimeoutExpired(command, 1)

    assert audit.audit(exceptions, hang, lambda _: None) == 3


def test_a_package_that_was_not_looked_up_is_not_clean(exceptions: Path) -> None:
    assert answer(exceptions, CLEAN, SKIPPED) == (3, "not known to osv: idna")
    assert answer(exceptions, AFFECTED, SKIPPED)[0] == 1


def test_the_exceptions_of_the_project_can_be_read() -> None:
    assert answer(audit.ROOT / "deploy" / "audit.toml", CLEAN)[0] == 0
