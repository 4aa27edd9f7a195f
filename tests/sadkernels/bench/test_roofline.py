"""The offline roofline: instructions per column from machine code, the shares of a GPU's pipes, and the gate on both."""

from __future__ import annotations

import csv
import runpy

import pytest

from tests.sadkernels.roofline import BENCHMARKS, COMMITTED

hot_loops = runpy.run_path(str(BENCHMARKS / "hot_loops.py"))
roofline = runpy.run_path(str(BENCHMARKS / "roofline.py"))

# One pass over rows of two bfloat16 sides, 8 columns per iteration. The branch to .L_x_2 leads to a slower path for rows
# that are not aligned; .L_x_4 is a loop that only fills a row with zeros.
SASS = """
.text.kernel:
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_1:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/              @!P1 BRA `(.L_x_2) ;
        /*0030*/                   LDG.E.128 R8, desc[UR4][R2.64] ;
        /*0040*/                   BRA `(.L_x_3) ;
.L_x_2:
        /*0050*/                   LDG.E.U16 R8, desc[UR4][R2.64] ;
        /*0060*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm3x_div_rn_noftz_f32_slowpath) ;
.L_x_3:
        /*0070*/                   FFMA R4, R4, R8, R12 ;
        /*0080*/                   FMNMX R4, R4, R8, !PT ;
        /*0090*/                   MUFU.EX2 R4, R4 ;
        /*00a0*/                   STG.E.EF.128 desc[UR4][R2.64], R4 ;
        /*00b0*/               @P0 BRA `(.L_x_1) ;
.L_x_4:
        /*00c0*/                   STG.E.EF.128 desc[UR4][R2.64], RZ ;
        /*00d0*/               @P0 BRA `(.L_x_4) ;
        /*00e0*/                   EXIT ;
"""


def test_instructions_per_column_of_the_aligned_path():
    loops = hot_loops["innermost_loops"](SASS)
    assert [loop.is_pass for loop in loops] == [True, False]
    work = hot_loops["per_column"](loops, bytes_per_column=4)
    opcodes = "LDG.E.128 BRA LDG.E.128 BRA FFMA FMNMX MUFU.EX2 STG.E.EF.128 BRA"
    assert " ".join(x.opcode for x in loops[0].path) == opcodes
    assert (work["passes"], work["issue_per_column"]) == (1, 9 / 8)
    assert (work["fma_per_column"], work["alu_per_column"], work["mufu_per_column"]) == (1 / 8, 1 / 8, 1 / 8)
    assert work["lsu_per_column"] == 3 * 4 / 8  # a 16-byte access occupies four lanes
    assert (work["narrow_in_passes"], work["calls_in_passes"]) == (0, 1)  # the call counts although its path is not hot


def test_a_copy_of_a_pass_does_not_count_twice():
    remainder = SASS[SASS.index(".L_x_1:") : SASS.index(".L_x_4:")]
    for number in (1, 2, 3):
        remainder = remainder.replace(f".L_x_{number}", f".L_x_{number}0")
    twice = SASS.replace("        /*00e0*/", remainder + "        /*00e0*/")
    loops = hot_loops["innermost_loops"](twice)
    assert len(loops) == 3 and hot_loops["per_column"](loops, 4)["passes"] == 1


def test_a_slower_pass_with_more_logarithms_is_a_copy():
    """A pass for unusual rows may need other special functions than the pass for ordinary rows."""
    log = "        /*0095*/                   MUFU.LG2 R4, R4 ;\n"
    store = "        /*00a0*/"
    ordinary = SASS.replace(store, log + store)
    slower = SASS[SASS.index(".L_x_1:") : SASS.index(".L_x_4:")].replace(store, 2 * log + store)
    for number in (1, 2, 3):
        slower = slower.replace(f".L_x_{number}", f".L_x_{number}0")
    both = ordinary.replace("        /*00e0*/", slower + "        /*00e0*/")
    work = hot_loops["per_column"](hot_loops["innermost_loops"](both), 4)
    assert (work["passes"], work["issue_per_column"]) == (1, 10 / 8)


def test_a_pass_with_more_arithmetic_is_another_pass():
    """The first two passes of reverse KL have the same special functions, and neither writes."""
    first = SASS.replace("        /*00a0*/                   STG.E.EF.128 desc[UR4][R2.64], R4 ;\n", "")
    second = first[first.index(".L_x_1:") : first.index(".L_x_4:")]
    second = second.replace(
        "        /*0080*/", "        /*0075*/                   FADD R4, R4, R8 ;\n" * 3 + "        /*0080*/"
    )
    for number in (1, 2, 3):
        second = second.replace(f".L_x_{number}", f".L_x_{number}0")
    both = first.replace("        /*00e0*/", second + "        /*00e0*/")
    work = hot_loops["per_column"](hot_loops["innermost_loops"](both), 4)
    assert (work["passes"], work["issue_per_column"]) == (2, (8 + 11) / 8)


def compiled(**changes) -> dict[str, object]:
    """Returns a row of `cuda_build.py`."""
    work = {"passes": 2, "issue_per_column": 44.0, "fma_per_column": 26.0, "alu_per_column": 12.0, "mufu_per_column": 4.25}
    work |= {"lsu_per_column": 2.5, "narrow_in_passes": 0, "calls_in_passes": 0, "spilled_bytes": 0, "registers": 64}
    about = {"file": "kernels_bfloat16.cu", "kernel": "streamed_rows_kernel<Bfloat16, forward, false>"}
    return about | {"architecture": "sm_90", "compiler": "nvcc 13.0"} | work | changes


def test_shares_of_an_h100():
    rows = {row["card"]: row for row in roofline["roofline_rows"]([compiled()])}
    assert set(rows) == {"H100", "H200"}
    columns = 0.9 * 3350e9 / 6  # per second at copy bandwidth: two bfloat16 reads and one write
    assert rows["H100"]["issue_share"] == pytest.approx(44 * columns / (132 * 1.98e9 * 128), abs=1e-3)
    assert rows["H100"]["mufu_share"] == pytest.approx(4.25 * columns / (132 * 1.98e9 * 16), abs=1e-3)
    assert (rows["H100"]["bound_by"], rows["H100"]["copy_fraction_at_most"]) == ("memory", 1.0)
    slow = {row["card"]: row for row in roofline["roofline_rows"]([compiled(issue_per_column=88.0)])}["H200"]
    assert slow["bound_by"] == "issue" and slow["copy_fraction_at_most"] == pytest.approx(1 / slow["issue_share"], abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"issue_per_column": 46.0}, None),  # 4.5 % more
        ({"issue_per_column": 46.5}, "issue_per_column is 46.5, was 44"),
        ({"mufu_per_column": 4.5}, "mufu_per_column"),
        ({"calls_in_passes": 1}, "calls_in_passes is 1, was 0"),
        ({"narrow_in_passes": 8}, "narrow_in_passes"),
        ({"spilled_bytes": 4}, "spilled_bytes"),
        ({"passes": 1}, "not recognized"),
        ({"issue_per_column": 99.0, "compiler": "nvcc 14.0"}, None),
        ({"issue_per_column": 99.0, "kernel": "scale_rows_kernel<float>"}, None),
    ],
)
def test_the_gate(changes, said):
    committed = roofline["roofline_rows"]([compiled()])
    worse, compared = roofline["regressions"]([compiled(**changes)], committed)
    assert bool(worse) == (said is not None)
    assert compared == (0 if "compiler" in changes or "kernel" in changes else 1)
    if said:
        assert said in worse[0] and "streamed_rows_kernel" in worse[0] and "sm_90" in worse[0]


def test_the_committed_roofline_is_complete_and_consistent():
    with open(COMMITTED, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(roofline["HOT_KERNELS"]) * len(roofline["CARDS"])
    for row in rows:
        shares = [float(row[f"{pipe}_share"]) for pipe in roofline["PIPES"]]
        assert float(row["copy_fraction_at_most"]) == pytest.approx(min(1, 1 / max(shares)), abs=2e-3), row["label"]
        assert row["calls_in_passes"] == row["narrow_in_passes"] == row["spilled_bytes"] == "0", row["label"]
