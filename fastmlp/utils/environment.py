"""What machine this is, and which version of the project."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """The GPU's or processor's name, as a person knows it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_commit(checkout: Path) -> str | None:
    """The commit of the git checkout whose top folder is ``checkout``, "-dirty" added where tracked
    files differ from it; None where it is no such folder or git is not there."""
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        answer = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _package_version() -> str:
    try:
        return metadata.version("fastmlp")
    except metadata.PackageNotFoundError:
        return "not installed"
