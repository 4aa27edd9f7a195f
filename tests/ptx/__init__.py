"""Executes compiled GPU code (PTX) on the host, and checks every memory access.

The modules, from the text of the compiler to a launch:

    parse           PTX text -> functions of instructions
    inline          calls of device functions -> their instructions
    control_flow    where the lanes of a warp meet again after a branch
    instructions    the table of supported instructions
    encode          functions -> the program that the executor runs
    executor/       the C++ executor: warps, shared memory, barriers, and the checks of accesses
    machine         builds the executor, and runs a program
    triton_kernels  the Triton backend on the executor
    cuda_kernels    the CUDA backend on the executor
"""
