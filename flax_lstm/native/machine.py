"""What the compiled loops are made for: this machine's processor, or its GPUs."""

import pathlib
import platform
import shutil
import subprocess

_ANSWER_SECONDS = 10
_GPUS_OF_DRIVER = pathlib.Path("/proc/driver/nvidia/gpus")


def processor() -> str:
    """The kind of processor with its instruction sets, or with the machine's name."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # Not on Linux.
        lines = []
    kinds = ("flags", "Features")
    flags = next((line for line in lines if line.startswith(kinds)), platform.node())
    return platform.machine() + flags


def gpus() -> str:
    """The driver's description of each GPU, without asking CUDA; empty without one."""
    known = list(_GPUS_OF_DRIVER.glob("*/information"))
    if known:
        lines = [
            line for file in known for line in file.read_text("utf-8").splitlines()
        ]
        return "\n".join(sorted(line for line in lines if line.startswith("Model")))
    # Some containers have the driver without its folder.
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_ANSWER_SECONDS
        )
    except subprocess.TimeoutExpired:  # As with a driver that hangs.
        return ""
    return "" if done.returncode else "\n".join(sorted(done.stdout.splitlines()))
