"""The device and stream of a CUDA launch, and the reasons why a launch is impossible."""

from __future__ import annotations

import functools
import re

import torch

from sadkernels.native.extension import load


def placement(device: torch.device) -> tuple[int, int]:
    """Returns the device index and the stream of a launch on tensors of `device`: PyTorch's current stream."""
    if device.type == "cpu":  # emulated
        return 0, 0
    return device.index, torch.cuda.current_stream(device).cuda_stream


def unusable(device: torch.device) -> str | None:
    """Returns why the kernels of a loadable extension cannot run on tensors of `device`, with the remedy, or None."""
    extension = load("cuda")
    if extension.emulated():
        return None if device.type == "cpu" else f"it is emulated and takes cpu tensors, these are on {device}"
    reason = _no_device()
    if device.type != "cuda":
        return f"it takes cuda tensors, these are on {device}; {reason or 'move them to the GPU or use backend=auto'}"
    return reason or _no_code(torch.cuda.get_device_capability(device))


@functools.cache
def _no_device() -> str | None:
    """Returns why no launch is possible on any device, with the remedy, or None."""
    extension = load("cuda")
    driver, runtime = extension.driver_version(), extension.runtime_version()
    if torch.version.hip is not None:
        return "this PyTorch is for AMD GPUs and these kernels are for NVIDIA's; use backend='triton'"
    if driver == 0:
        return "there is no NVIDIA driver (libcuda.so.1 was not found); install one or use backend='auto'"
    if driver // 1000 < runtime // 1000:
        return (
            f"the NVIDIA driver is for CUDA {_dotted(driver)} and older, the kernels were built with {_dotted(runtime)}; "
            "update the driver or reinstall with an older nvcc"
        )
    if extension.device_count() == 0:
        return "the NVIDIA driver shows no GPU; see `nvidia-smi` and CUDA_VISIBLE_DEVICES, or use backend='auto'"
    if not torch.cuda.is_available():
        return "this PyTorch is built without CUDA; install one with it (pytorch.org) or use backend='auto'"
    return None


@functools.cache
def _no_code(capability: tuple[int, int]) -> str | None:
    """Returns why this build has no code for a GPU of this compute capability, or None.

    Machine code runs on GPUs of the same major version and the same or a newer minor version. PTX runs on all newer GPUs, if
    the driver knows the PTX of the toolkit. Code for sm_90a runs on 9.0 alone, code for sm_100f on 10.0 and newer 10.x.
    """
    extension = load("cuda")
    built, needs_driver = extension.architectures(), False
    for name in built:
        kind, major, minor, suffix = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name).groups()
        version = (int(major), int(minor))
        if version > capability or (suffix == "a" and version != capability):
            continue
        if (kind == "sm" or suffix == "f") and version[0] != capability[0]:
            continue
        if kind == "sm" or extension.driver_version() >= extension.runtime_version():
            return None
        needs_driver = True
    wanted = f"{capability[0]}.{capability[1]}"
    if capability < (8, 0):
        return f"it needs compute capability 8.0 or newer, this GPU has {wanted}; use backend='reference'"
    if needs_driver:
        driver, runtime = _dotted(extension.driver_version()), _dotted(extension.runtime_version())
        return (
            f"it has only PTX for this GPU of compute capability {wanted}, made with CUDA {runtime}, and the driver is for "
            f"CUDA {driver}; update the driver, reinstall with TORCH_CUDA_ARCH_LIST={wanted}, or use backend='auto'"
        )
    return (
        f"it was built for {', '.join(built)} and this GPU has compute capability {wanted}; "
        f"reinstall with TORCH_CUDA_ARCH_LIST={wanted}, or use backend='auto'"
    )


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
