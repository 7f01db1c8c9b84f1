"""`make audit`: whether a pinned package has a known vulnerability, asked of the package index or of osv.dev.

In: constraints.txt, and exceptions with reasons in audit.toml. Out: lines on standard output, and an exit code: 0 every
package was looked up and none is affected, 1 something is to be done, 3 the answer is not known. A package that
could not be looked up counts as not known: pip-audit itself ends with 0 then.
"""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CLEAN, AFFECTED, UNKNOWN = 0, 1, 3
SERVICES = ("osv", "pypi")
TIMEOUT_SECONDS = 600

Run = Callable[[Sequence[str]], str]


def ask(service: str, run: Run) -> list[dict[str, Any]] | None:
    """What `service` says of each pinned package; None where it does not answer."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip"]
    try:
        answer = json.loads(run([*command, "--vulnerability-service", service, "--format", "json"]))
    except (ValueError, subprocess.SubprocessError, OSError):
        return None
    packages: list[dict[str, Any]] = answer["dependencies"]
    return packages if any("skip_reason" not in package for package in packages) else None


def audit(exceptions: Path, run: Run, write: Callable[[str], object] = print) -> int:
    """Ask the services in turn until one answers. Returns the exit code."""
    reasons = {entry["id"]: entry["reason"] for entry in tomllib.loads(exceptions.read_text()).get("exception", [])}
    for service in SERVICES:
        packages = ask(service, run)
        if packages is not None:
            break
    else:
        write("not reachable: neither osv.dev nor the package index answers; nothing is known about vulnerabilities")
        return UNKNOWN
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    found, affected = set(), False
    for package in packages:
        for vulnerability in package.get("vulns", []):
            names = {vulnerability["id"], *vulnerability.get("aliases", [])}
            found |= names
            reason = next((reasons[name] for name in sorted(names) if name in reasons), None)
            affected = affected or reason is None
            fixed = ", ".join(vulnerability.get("fix_versions", [])) or "no version yet"
            note = f"fixed in {fixed}" if reason is None else f"accepted: {reason}"
            write(f"{package['name']} {package['version']}: {vulnerability['id']}, {note}")
    for name in sorted(reasons.keys() - found) if not skipped else ():
        affected = True
        write(f"{exceptions.name}: {name} is reported no longer; remove it")
    if skipped:
        write(f"not known to {service}: {', '.join(skipped)}")
    if affected:
        return AFFECTED
    if skipped:
        return UNKNOWN
    write(f"{len(packages)} packages, no vulnerability that is known to {service} and not accepted")
    return CLEAN


def _run(command: Sequence[str]) -> str:
    return subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=TIMEOUT_SECONDS
    ).stdout


if __name__ == "__main__":
    sys.exit(audit(ROOT / "deploy" / "audit.toml", _run))
