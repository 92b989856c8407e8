"""The conformance suite, quick profile: fails while no operator passes."""

import subprocess
import sys
from pathlib import Path

WAIVERS = Path(__file__).parents[1] / "waivers.toml"


def test_conformance(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "spikingbrain_hal", "conformance", "--backend", "scalar", "--profile", "quick"]
    subprocess.run([*command, "--waivers", WAIVERS, "--out", tmp_path], check=True)
