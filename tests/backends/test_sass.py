"""helpers.sass on listings small enough to count by hand."""

import pytest
from helpers import sass
from helpers.kernel_work import Passes, Row, Work, work_of

HEADER = "\tcode for sm_90\n\t\tFunction : kernel\n"


def code(*lines):
    """Instructions at 0x10, 0x20 and so on; in a branch, `@n` stands for the n-th of them."""
    text = []
    for number, line in enumerate(lines, 1):
        for target in range(len(lines), 0, -1):
            line = line.replace(f"@{target} ", f"{16 * target:#x} ")
        text.append(f"        /*{16 * number:04x}*/                   {line} ;   /* 0x0 */")
    return sass.Code(tuple(sass.instructions(text)))


def test_a_listing_is_taken_apart():
    lines = ["arch = sm_80", *HEADER.splitlines(), "        /*0000*/   MOV R1, R2 ;  /* 0x1 */", "   /* 0x2 */",
             "        /*0010*/   @!P0 EXIT ;  /* 0x1 */", "        /*0020*/   NOP;  /* 0x1 */", "arch = sm_90",
             "\t\tFunction : other", "        /*0000*/   EXIT ;"]
    found = [(arch, name, sass.instructions(text)) for arch, name, text in sass.listings(lines)]
    assert [(arch, name, len(text)) for arch, name, text in found] == [("sm_80", "kernel", 2), ("sm_90", "other", 1)]
    assert found[0][2][1] == sass.Instruction(0x10, "!P0", "EXIT")


@pytest.mark.parametrize("text,width", [("LDG.E.128 R4, desc[UR4][R2.64]", 16), ("LDG.E.64 R4, desc[UR4][R2.64]", 8),
                                        ("LDG.E R4, desc[UR4][R2.64]", 4), ("LDG.E.U8 R4, desc[UR4][R2.64]", 1),
                                        ("LDGSTS.E.BYPASS.128 [R7], desc[UR4][R2.64]", 16)])
def test_widths(text, width):
    assert sass.Instruction(0, "", text).width == width


def test_the_steady_way_moves_the_most_data_in_the_fewest_instructions():
    found = code("S2R R0, SR_TID.X", "@P0 BRA @6 ", "MOV R9, R9", "STG.E.128 desc[UR4][R2.64], R4", "EXIT",
                 "@P1 BRA @9 ", "MOV R9, R9", "MOV R8, R8", "LDG.E.128 R4, desc[UR4][R2.64]",
                 "STG.E.128 desc[UR4][R2.64], R4", "EXIT")
    # Both ways store as much; the one that loads as well, and of its branches the shorter.
    assert [i.address // 16 for i in found.steady] == [1, 2, 6, 9, 10, 11]
    assert found.executed() == 6


def test_loops_are_passed_by_and_counted_by_their_turns():
    found = code("S2R R0, SR_TID.X", "@P0 BRA @7 ", "LDG.E.128 R4, desc[UR4][R2.64]", "FADD R8, R8, R4",
                 "ISETP.NE.AND P1, PT, R0, RZ, PT", "@P1 BRA @3 ", "STG.E.128 desc[UR4][R2.64], R8", "EXIT")
    assert [(loop.header // 16, len(found.turn(loop))) for loop in found.data_loops] == [(3, 4)]
    assert [i.address // 16 for i in found.steady] == [1, 2, 7, 8]
    assert (found.executed(), found.executed(1), found.executed(5)) == (4, 8, 24)


def test_waiting_threads_go_on_where_their_barrier_says():
    found = code("BSSY B0, @5 ", "@P0 BRA @4 ", "MOV R1, R1", "BSYNC B0", "EXIT")
    assert found.blocks[0x40].following == [0x50]


def test_flight_ends_where_a_loaded_register_is_touched():
    loads = [f"LDG.E.128 R{at}, desc[UR4][R2.64]" for at in (4, 8, 12)]
    both_first = code(*loads, "FADD R20, R20, R12", "FADD R20, R20, R4", "EXIT")
    assert sass.in_flight(both_first.steady) == sass.Flight(3, 48)
    in_turn = code(loads[0], "FADD R20, R20, R7", loads[1], "FADD R20, R20, R8", loads[2], "EXIT")
    assert sass.in_flight(in_turn.steady) == sass.Flight(1, 16)
    # A store reads the registers beside the one that it names, and an overwritten register is waited for.
    assert sass.in_flight(code(loads[0], "STG.E.128 desc[UR4][R2.64], R4", loads[1], "EXIT").steady).wide == 1
    assert sass.in_flight(code(loads[0], "MOV R5, RZ", loads[1], "EXIT").steady).wide == 1
    assert sass.in_flight(code("LDG.E.U8 R4, desc[UR4][R2.64]", loads[1], "EXIT").steady) == sass.Flight(1, 17)


def test_products_are_counted_by_the_shape_of_their_instructions():
    hmma, hgmma = "HMMA.1688.F32.TF32 R4, R8, R10, R4", "HGMMA.64x128x8.F32.TF32 R24, R8, gdesc[UR4], R24"
    assert [i.multiply_adds for i in code(hmma, hgmma, "FFMA R1, R2, R3, R4").instructions] == [1024, 65536, 0]
    loop = ("LDGSTS.E.BYPASS.128 [R7], desc[UR4][R2.64]", "LDGSTS.E [R7], desc[UR4][R2.64]")
    end = ("ISETP.NE.AND P1, PT, R0, RZ, PT", "@P1 BRA @1 ", "EXIT")
    # A block of 8 warps: 8 HMMA, or two groups' HGMMA.
    assert code(*loop, hmma, hmma, *end).products(8 * 1024, 256) == {
        "instructions": 0.188, "cores": 2, "copies_16": 1, "copies_4": 1}
    assert code(*loop, hgmma, *end).products(2 * 65536, 256) == {
        "instructions": 0.01, "cores": 1, "copies_16": 1, "copies_4": 1}


def test_resident_threads():
    assert sass.resident_threads(32, 256, 0) == 2048
    assert sass.resident_threads(33, 128, 0) == 1536  # 40 registers a thread: 12 blocks of 128
    assert sass.resident_threads(64, 512, 44 * 1024) == 1024
    assert sass.resident_threads(32, 512, 100 * 1024) == 1024  # two blocks' shared memory


def test_work_of_kernels():
    assert work_of("paste_kernel<unsigned short, PlanePieces<8, 3> >") == Work(24, 128)
    assert work_of("view_kernel<bf16, RowPieces<8, 4>, (ViewMix)1>") == Work(32, 128, 2)
    assert work_of("isda_pull_kernel<float>") == Work(512, 128, products=True)
    assert work_of("isda_pull_kernel<double>") is None
    assert work_of("rank_kernel") is None


def test_work_of_soft_target():
    staged = work_of("soft_target_rows<bf16, (TargetKind)0, 256, -1, 256>")
    assert (staged.elements, staged.threads, staged.staged) == (8, 256, 2 * 21841)
    assert work_of("soft_target_rows<float, (TargetKind)0, 32, 8, 128>") == Row(32, 128)
    assert work_of("soft_target_rows<float, (TargetKind)2, 32, 0, 256>") == Passes(4, 256)
    assert work_of("soft_target_pixel_rows<f16, (TargetKind)0>") == Passes(8, 128)
    assert work_of("soft_target_rows<double, (TargetKind)0, 256, 0, 256>") is None


def loop(at, *lines):
    """Instructions of a loop whose first is the at-th of the whole."""
    return [*lines, f"@P1 BRA @{at} "]


def test_passes_over_a_row_are_told_apart_and_added_up():
    """Of each kind the cheapest, so many instructions by so many elements; what lies between them is not counted."""
    copy = loop(2, "LDGSTS.E.BYPASS.128 [R7], desc[UR4][R2.64]", "IADD3 R7, R7, R8, RZ")
    largest = loop(6, "LDS.128 R4, [R9]", "HMNMX2.BF16_V2 R3, R3, R4, PT")
    with_base = loop(9, "LDS.128 R4, [R9]", "MUFU.EX2 R5, R5", "FADD R6, R6, R5", "FADD R6, R6, R4")
    sums = loop(14, "LDS.128 R4, [R9]", "MUFU.EX2 R5, R5", "FADD R6, R6, R5")
    gradient = loop(18, "LDS.128 R4, [R9]", "MUFU.EX2 R5, R5", "MUFU.EX2 R6, R6", "STG.E.128 desc[UR4][R2.64], R4")
    found = code("S2R R0, SR_TID.X", *copy, "MOV R1, R1", *largest, *with_base, *sums, *gradient, "EXIT")
    work = Passes(8, 256, staged=1000)
    assert work.instructions(found) == 3 / 8 + 3 / 8 + 4 + 5 / 2
    # Six blocks of 256 threads by their registers, each with its row on the way.
    assert work.per_sm(found, 40, 1024) == 6 * 1000
    waits = loop(2, "LDGSTS.E.BYPASS.128 [R7], desc[UR4][R2.64]", "LDGDEPBAR")
    assert work.per_sm(code("S2R R0, SR_TID.X", *waits, "EXIT"), 40, 1024) == 0


def test_a_turn_leaves_out_no_pass_of_a_cached_row():
    found = code("S2R R0, SR_TID.X", "LDG.E.128.CONSTANT R4, desc[UR4][R2.64]", "@P0 BRA @5 ", "FMNMX R3, R3, R4, !PT",
                 "@P0 BRA @7 ", "MUFU.EX2 R5, R4", "STG.E.128 desc[UR4][R2.64], R4", "@P1 BRA @2 ", "EXIT")
    assert Row(4, 256).instructions(found) == 7 / 4
