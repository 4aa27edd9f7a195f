"""The `triton` backend.

Each op has a launcher module with the functions that `sadkernels.reference` defines, and a module with its kernels:

    span_kl.py       -> span_kl_kernels.py, span_kl_slice_kernels.py, both on span_kl_softmaxes.py and span_kl_passes.py;
                        for ordinary rows on span_kl_fast_totals.py and span_kl_fast_passes.py
    topk_span_kl.py  -> topk_span_kl_kernels.py, on topk_span_kl_passes.py
    span_ids.py      launcher and kernel

All ops share `launch.py` (tensors to kernel arguments), `tiles.py` (every tile size with its reason), `supervised_rows.py`
(the index of the rows to read), `row_io.py` (loads and stores), `softmax.py` and `divergences.py` (the arithmetic).
"""
