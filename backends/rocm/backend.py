"""AMD GPUs, through ROCm."""

from importlib import import_module

import torch

from spikingbrain_hal.gpu import device_backend


def _without_code() -> str | None:
    """Which device this build has no code for; HIP may end the process at its first call then."""
    targets = import_module(f"{__package__}._built").targets
    names = {target.split(":")[0] for target in targets}
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        if name not in names:
            return (
                f"device {index} is {name}, this build has code for {', '.join(targets)}; "
                f'reinstall with -C cmake.define.SBHAL_ROCM_ARCHS="{name}"'
            )
    return None


backend = device_backend(__package__, "rocm", "AMD", _without_code)
