"""What only the Triton kernels do: rows of NaN, launches beside the first, roundings, the operators' registration.

Every other property is tested by the operators' own files, which the interpreter runs with the variant "triton".
"""

import subprocess
import sys

import pytest
import torch
from helpers.isda_cases import make, with_grads
from helpers.support import same_bits

import fastmix
import fastmix.functional as F
from fastmix import SoftTarget
from fastmix.ops import library
from fastmix.ops.dispatch import why_not

pytestmark = [pytest.mark.interpreted,
              pytest.mark.skipif(why_not("blend", "triton", "cpu") is not None,
                                 reason="runs in Triton's interpreter: TRITON_INTERPRET=1")]
OPS = getattr(torch.ops, library.TRITON_NAMESPACE)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def _triton():
    with fastmix.backend("triton"):
        yield


def grad_of(fn, x):
    x = x.detach().requires_grad_()
    y = fn(x)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


def test_bfloat16_is_rounded_to_nearest_even():
    common = library.kernels("_common")
    import triton
    import triton.language as tl

    @triton.jit
    def cast(out_ptr, x_ptr, n: tl.constexpr):
        i = tl.arange(0, n)
        tl.store(out_ptr + i, common.to_storage(tl.load(x_ptr + i), out_ptr.dtype.element_ty))

    bits = torch.randint(-2**31, 2**31 - 1, (4096,), dtype=torch.int64).to(torch.int32)
    bits[:512] &= ~0xFFFF  # exact
    bits[512:1024] = bits[512:1024] & ~0xFFFF | 0x8000  # ties
    bits[:6] = torch.tensor([0, -2**31, 0x7F800000, 0x7F7FFFFF, 0x7FFFFFFF, 1])
    x = bits.view(torch.float32)
    out = torch.empty(4096, dtype=torch.bfloat16)
    cast.fn.__globals__["common"] = common
    cast[(1,)](out, x, n=4096)
    number = ~x.isnan()
    assert same_bits(out[number], x.to(torch.bfloat16)[number]) and out[~number].isnan().all()


# ---------------------------------------------------------------- soft_target

@pytest.mark.parametrize("name", ["soft_cross_entropy", "soft_kl", "soft_bce"])
@pytest.mark.parametrize("classes", [5, 300])
def test_a_class_out_of_range_makes_its_row_nan(name, classes):
    z = torch.randn(6, classes)
    index = torch.tensor([[0, 1], [2, classes], [-1, 0], [3, 3], [2**40, 1], [0, -2**62]])
    target = SoftTarget(index, torch.rand(6, 2))
    loss, grad = grad_of(lambda v: getattr(F, name)(v, target, reduction="none"), z)
    good = torch.tensor([True, False, False, True, False, False])
    kept = SoftTarget(index[good], target.weight[good])
    want_loss, want_grad = grad_of(lambda v: getattr(F, name)(v, kept, reduction="none"), z[good])
    assert same_bits(loss[good], want_loss) and same_bits(grad[good], want_grad)
    assert loss[~good].isnan().all() and grad[~good].isnan().all()
    assert getattr(F, name)(z, target).isnan()


@pytest.mark.parametrize("rows", [511, 512, 513, 1025])
def test_rows_that_are_not_ignored_are_counted_by_either_launch(rows):
    y = torch.randint(0, 3, (rows,))
    y[::3] = -100
    z = torch.randn(rows, 3)
    ours = grad_of(lambda v: F.soft_cross_entropy(v, y), z)
    torch.testing.assert_close(ours, grad_of(lambda v: torch.nn.functional.cross_entropy(v, y), z))
    assert same_bits(ours[1][::3], torch.zeros(len(y[::3]), 3))


@pytest.mark.parametrize("classes", [33333, 33344])  # with an edge, which is read first, and without
def test_a_long_row_that_starts_masked(classes):
    """The running maximum of a row longer than one pass is -inf for a while."""
    z = torch.randn(2, classes, dtype=torch.float64)
    z[0, :30000] = -float("inf")
    target = SoftTarget(torch.tensor([[33000, 31000], [5, 6]]), torch.tensor([[0.25, 0.5], [0.5, 0.5]]))
    ours = grad_of(lambda v: F.soft_cross_entropy(v, target, reduction="none"), z)
    with fastmix.backend("reference"):
        torch.testing.assert_close(ours, grad_of(lambda v: F.soft_cross_entropy(v, target, reduction="none"), z))
    assert (ours[1][0, :30000] == 0).all()
    dense = target.dense(classes)
    torch.testing.assert_close(grad_of(lambda v: F.soft_cross_entropy(v, dense, reduction="none"), z), ours)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scaling_by_one_touches_nothing(dtype):
    scale = library.kernels("soft_target").scale_gradient_
    grad = torch.randn(3, 5000).to(dtype)
    g = torch.ones((), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    before = grad.clone()
    scale(grad, g)
    assert same_bits(grad, before)
    scale(grad, g * -2.5)
    torch.testing.assert_close(grad, before * -2.5, rtol=0, atol=0)


def test_soft_target_opcheck():
    for grad in (False, True):
        z = torch.randn(4, 7, requires_grad=grad)
        target = SoftTarget(torch.randint(0, 7, (4, 3)), torch.rand(4, 3), torch.rand(4))
        torch.library.opcheck(OPS.soft_target.default,
                              (z, *target, None, torch.rand(4), None, None, 0.1, -100, 1, 0, 1, grad))
        torch.library.opcheck(OPS.soft_target_dense.default, (z, target.dense(7), None, None, None, 0.0, 0, 0, grad))


# ---------------------------------------------------------------- isda

@pytest.mark.parametrize("kind", ["full", "diag", "shared", "identity"])
def test_many_tiles_of_classes_and_features(kind, monkeypatch):
    """Panels before and on the diagonal, parts of tables, splits of sums: what larger shapes have."""
    kernels = library.kernels("_isda_table")
    z, w, cov, y = make(kind, 9, 40, 37)

    def results():
        return with_grads(lambda z, w: F.isda_logits(z, w, cov, y, 0.7, kind=kind), z, w, z)

    with fastmix.backend("reference"):
        want = results()
    monkeypatch.setattr(kernels, "CONFIG", kernels.Config(full_ieee=16, side_ieee=16, part=16))
    torch.testing.assert_close(results(), want, rtol=1e-4, atol=1e-3)
    monkeypatch.setattr(kernels, "CONFIG", kernels.Config(full=32, side=32, part=32, depth=16, programs=1))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        torch.testing.assert_close(results(), want, rtol=1e-2, atol=1e-1)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("alone", [4, 8192])
def test_present_classes_are_numbered_by_either_launch(alone, monkeypatch):
    kernels = library.kernels("_classes")
    monkeypatch.setattr(kernels, "MARKED_ALONE", alone)
    labels = torch.tensor([5, 2, -100, 5, 31, 32, -1, 0, 7])
    present, slot = kernels.present_classes(labels, 32, 7)
    assert present.tolist() == [0, 2, 5, 31, *[-1] * 5]
    assert slot[[0, 2, 5, 31]].tolist() == [0, 1, 2, 3] and (slot == -1).sum() == 28


def test_products_have_the_precision_of_torchs_own():
    """By the older setting and, in a process of its own, by the newer one, after which torch refuses the older."""
    script = """
import torch, triton.language as tl
from fastmix.ops import library
precision = library.kernels("_classes").matmul_precision
assert precision(tl.float32) == "tf32x3"
for setting, want in (("high", "tf32"), ("medium", "tf32"), ("highest", "tf32x3")):
    torch.set_float32_matmul_precision(setting)
    assert precision(tl.float32) == want and precision(tl.float64) == "ieee", setting
for setting, want in (("tf32", "tf32"), ("ieee", "tf32x3")):
    torch.backends.cuda.matmul.fp32_precision = setting
    assert precision(tl.float32) == want
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)


# ---------------------------------------------------------------- images

BAD = [4, -1, 2**40, -2**62]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", BAD)
def test_an_index_outside_the_batch_makes_its_image_nan(bad, dtype):
    x, g = torch.randn(4, 3, 6, 10).to(dtype), torch.randn(4, 3, 6, 10).to(dtype)
    index = torch.tensor([[0, 1], [2, 3], [1, 1], [3, 0]])
    spoiled = index.clone()
    spoiled[1, 1] = bad
    rows = torch.tensor([True, False, True, True])
    boxes = torch.tensor([[[1, 2, 3, 4]]] * 4, dtype=torch.int32)
    weight, mask, lam = torch.rand(4, 2), torch.rand(4, 3, 5) < 0.5, torch.rand(4)
    for fn, args, wrong in ((F.blend, (index, weight), (spoiled, weight)),
                            (F.paste, (index, boxes), (spoiled, boxes)),
                            (F.patch_mix, (index[:, 1], mask, lam), (spoiled[:, 1], mask, lam))):
        v, u = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, want = fn(v, *wrong), fn(u, *args)
        if isinstance(y, tuple):
            (y, share), (want, true_share) = y, want
            assert same_bits(share[rows], true_share[rows]) and share[~rows].isnan().all()
        assert same_bits(y[rows], want[rows]) and y[~rows].isnan().all()
        # The spoiled row hands no gradient on, to its valid sources either.
        got, = torch.autograd.grad(y, v, g)
        quiet = g.clone()
        quiet[~rows] = 0
        assert same_bits(got + 0.0, torch.autograd.grad(want, u, quiet)[0] + 0.0)


@pytest.mark.parametrize("columns", [3, 9])  # unrolled, and in a loop
def test_a_bad_index_in_any_column_makes_its_image_nan(columns):
    x, weight = torch.randn(2, 1, 2, 4), torch.rand(2, columns)
    bytes_, view = torch.randint(0, 256, x.shape, dtype=torch.uint8), fastmix.View(torch.zeros(1), torch.ones(1))
    boxes = torch.tensor([[[0, 0, 1, 2]] * (columns - 1)] * 2, dtype=torch.int32)
    for column in range(columns):
        index = torch.zeros(2, columns, dtype=torch.int64)
        index[1, column] = 2
        for y in (F.blend(x, index, weight), F.blend(bytes_, index, weight, view=view), F.paste(x, index, boxes),
                  F.paste(bytes_, index, boxes, view=view)):
            assert y[1].isnan().all() and not y[0].isnan().any(), column


@pytest.mark.parametrize("rows,columns", [(1, 1), (5, 3), (70, 2), (33, 4)])
def test_counting_and_sorting_invert_a_gather_alike(rows, columns, monkeypatch):
    kernels = library.kernels("_by_source")
    index = torch.randint(-1, rows + 1, (rows, columns))
    offset, place = kernels.by_source(index)
    monkeypatch.setattr(kernels, "CONFIG", kernels.Config(counted=0))
    sorted_offset, sorted_place = kernels.by_source(index)
    assert torch.equal(offset.long(), sorted_offset) and torch.equal(place.long(), sorted_place)
    valid = ((index >= 0) & (index < rows)).all(1)
    for m in range(rows):
        want = [n * columns + k for n in range(rows) for k in range(columns) if valid[n] and index[n, k] == m]
        assert place[offset[m]:offset[m + 1]].tolist() == want


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_percentile_of_more_cells_than_registers_hold(dtype, monkeypatch):
    kernels = library.kernels("saliency")
    map = torch.randn(3, 70, 61).to(dtype)
    map[0, 3:9] = 0.5
    map[1, 0] = float("nan")
    map[2, 5], map[2, 6, :5] = -0.0, float("inf")
    q = torch.tensor([0.0, 0.4, 0.97])
    want = fastmix.reference.functional.percentile_mask(map, q)
    assert torch.equal(F.percentile_mask(map, q), want)
    monkeypatch.setattr(kernels, "CONFIG", kernels.Config(in_registers=100))
    assert torch.equal(F.percentile_mask(map, q), want)


def test_two_launches_for_large_images_do_what_one_does_for_small(monkeypatch):
    kernels = library.kernels("saliency")
    grad, q = torch.randn(2, 5, 24, 36), torch.rand(2)
    for grid in ((4, 6), (24, 36), (1, 1)):
        one = F.saliency_map(grad, grid), F.saliency_mask(grad, grid, q)
        monkeypatch.setattr(kernels, "CONFIG", kernels.Config(whole_image=10))
        two = F.saliency_map(grad, grid), F.saliency_mask(grad, grid, q)
        monkeypatch.undo()
        torch.testing.assert_close(two[0], one[0])
        assert torch.equal(two[1], one[1])


def test_opcheck_of_images():
    x, index = torch.randn(3, 2, 4, 6), torch.randint(0, 3, (3, 3))
    boxes = torch.randint(0, 4, (3, 2, 4), dtype=torch.int32)
    mask, lam, q = torch.rand(3, 2, 3) < 0.5, torch.rand(3), torch.rand(3)
    last = x.contiguous(memory_format=torch.channels_last)
    for v in (x, x.clone().requires_grad_(), last):
        torch.library.opcheck(OPS.blend.default, (v, index, torch.rand(3, 3)))
        torch.library.opcheck(OPS.paste.default, (v, index, boxes))
        torch.library.opcheck(OPS.patch_mix.default, (v, index[:, 0], mask, lam))
    torch.library.opcheck(OPS.blend_backward.default, (x, index, torch.rand(3, 3)))
    torch.library.opcheck(OPS.paste_backward.default, (x, index, boxes))
    torch.library.opcheck(OPS.patch_mix_backward.default, (x, index[:, 0], mask, lam))
    for v in (x, last):
        torch.library.opcheck(OPS.saliency_map.default, (v, 2, 3))
        torch.library.opcheck(OPS.saliency_mask.default, (v, 2, 3, q))
        torch.library.opcheck(OPS.saliency_peak.default, (v,))
    torch.library.opcheck(OPS.percentile_mask.default, (torch.rand(3, 2, 3), q))


def test_opcheck_of_crops():
    x, fill, shift = torch.randn(3, 2, 4, 6), torch.rand(3, 2), torch.randint(-3, 4, (3, 2))
    box = torch.tensor([[0.5, -1.0, 3.0, 4.0]], dtype=torch.float64).repeat(3, 1)
    for v in (x.contiguous(memory_format=torch.channels_last), x.clone().requires_grad_()):
        torch.library.opcheck(OPS.crop.default, (v, shift, fill, 0.0))
        torch.library.opcheck(OPS.resized_crop.default, (v, box, 3, 5, None, 0.5))
    torch.library.opcheck(OPS.resized_crop_backward.default, (x, box, 4, 6))


def test_opcheck_of_operators_that_write_their_arguments():
    torch.library.opcheck(OPS.scale_gradient_.default, (torch.randn(3, 5), torch.tensor(2.0)))
    for code, shape in enumerate(((5, 4, 4), (5, 4), (4, 4), (0,))):
        state = torch.ones(5, dtype=torch.int64), torch.zeros(5, 4), torch.zeros(shape)
        torch.library.opcheck(OPS.covariance_update_.default,
                              (*state, torch.randn(6, 4, 1), torch.randint(0, 5, (6, 1)), None, code))


@pytest.mark.parametrize("shape,last", [((3, 3, 40, 24), False), ((2, 3, 21, 48), True), ((2, 5, 7, 9), False)])
def test_tiles_are_those_of_the_traffic_model(shape, last):
    """Programs run with the images innermost, and divide an image as `fastmix.bench.harness.tiles` says."""
    import triton
    import triton.language as tl

    from fastmix.bench.harness import tiles as model

    kernels = library.kernels("_tiles")

    @triton.jit
    def tell(out_ptr, batch, rows, length, column_chunks, VEC: tl.constexpr, ROWS: tl.constexpr,
             COLUMNS: tl.constexpr):
        n, row, column, length, inside = kernels.tile(batch, rows, length, column_chunks, VEC, ROWS, COLUMNS)
        at = n * rows * length + row * length + column
        tl.store(out_ptr + at, tl.program_id(0) + row * 0 + column * 0, mask=inside)

    tell.fn.__globals__["kernels"] = kernels
    x = torch.empty(shape).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    tiles = kernels.Tiles.of(x)
    out = torch.full((x.numel(),), -1, dtype=torch.int32)
    tell[(tiles.programs,)](out, shape[0], tiles.rows, tiles.length, tiles.column_chunks, VEC=tiles.vec,
                            ROWS=tiles.tile_rows, COLUMNS=tiles.tile_columns)
    images = model.Images(*shape, x.element_size(), last)
    wanted = torch.full_like(out, -1)
    for number, tile in enumerate(model.triton(images, tiles.tile_rows, tiles.tile_columns)):
        for n in range(shape[0]):
            for first, count in tile:
                at = n * images.rows * images.length + first
                wanted[at:at + count] = number * shape[0] + n
    assert torch.equal(out, wanted)


@pytest.mark.parametrize("form", ["labels", "dense", "bce", "pixels"])
def test_a_loss_is_one_launch(monkeypatch, form):
    """Its last program adds up those of the others, in the order in which a second launch would."""
    kernels = library.kernels("soft_target")
    finished = library.kernels("_finished").finished_programs(torch.device("cpu"))
    shape = (3, 7, 300) if form == "pixels" else (70, 301)
    z, y = torch.randn(shape), torch.randint(0, shape[1], (shape[0], *shape[2:]))
    target = torch.rand(shape) if form == "dense" else y
    loss = F.soft_bce if form == "bce" else F.soft_cross_entropy
    launches = []
    launch = kernels.launch
    monkeypatch.setattr(kernels, "launch", lambda kernel, *a, **b: (launches.append(kernel.fn.__name__),
                                                                    launch(kernel, *a, **b)))
    once, again = (grad_of(lambda v: loss(v, target), z) for _ in range(2))
    assert len(launches) == (4 if form == "pixels" else 2)  # of pixels: more rows than a program should count itself
    assert finished.item() == 0
    monkeypatch.setattr(kernels, "finished_programs", lambda device: None)
    launches.clear()
    apart = grad_of(lambda v: loss(v, target), z)
    assert launches[-1] == "sum_parts"
    for found in (again, apart):
        assert all(map(same_bits, once, found))


def test_counters_of_streams_and_captures(monkeypatch):
    """One for each stream; each captured launch its own, and none before there is memory that is clear."""
    finished = library.kernels("_finished")
    for name in ("_memory", "_captures", "_of_stream"):
        monkeypatch.setattr(finished, name, {})
    state = {"stream": 7, "captured": True}
    device = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda of: type("Stream", (), {"cuda_stream": state["stream"]}))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state["captured"])
    monkeypatch.setattr(finished, "_cleared", lambda of: torch.zeros(4 * (1024 + 16384), dtype=torch.int32))
    assert finished.finished_programs(device) is None
    state["captured"] = False
    first = finished.finished_programs(device)
    assert finished.finished_programs(device) is first
    state["stream"] = 8
    second = finished.finished_programs(device)
    state["captured"] = True
    counters = [first, second, *(finished.finished_programs(device) for _ in range(3))]
    assert len({c.data_ptr() for c in counters}) == 5
    assert {c.numel() for c in counters} == {1}
    assert {c.data_ptr() % 16 for c in counters} == {first.data_ptr() % 16}
    assert all(c.item() == 0 for c in counters)
