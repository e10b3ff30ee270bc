"""View: bytes to mixed, normalised images in one pass, against the float64 equations and a loop over pixels."""

import pickle

import pytest
import torch
from helpers.support import DTYPES, NAN_ROWS, OFFSETS, compiled, dtype_id, same_bits, within_budget
from hypothesis import given
from hypothesis import strategies as st

import fastmix
import fastmix.functional as F
from fastmix import View
from fastmix.ops import dispatch
from fastmix.reference import functional as reference

pytestmark = pytest.mark.operator("view")
SHAPES = [(0, 3, 4, 4), (3, 0, 4, 4), (1, 1, 1, 1), (5, 3, 32, 32), (3, 1, 7, 19), (4, 4, 9, 6), (1, 3, 3, 301),
          (3, 3, 40, 70), (2, 17, 5, 7), (2, 601, 3, 4), (6, 3, 8, 16)]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def seen(shape, dtype=torch.float32, memory_format=torch.preserve_format, flip=True, shift=True):
    """A view with flips, and shifts of which some leave the image."""
    n, c, h, w = shape
    moved = torch.stack([torch.randint(-h - 2, h + 3, (n,)), torch.randint(-w - 2, w + 3, (n,))], 1)
    moved[::2] = torch.randint(-2, 3, moved[::2].shape)
    return View(torch.rand(c), torch.rand(c) + 0.1, torch.rand(n) < 0.5 if flip else None, moved if shift else None,
                dtype, memory_format)


def byte_images(shape, channels_last=False):
    x = torch.randint(0, 256, shape, dtype=torch.uint8)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def cells(side):
    return next((count for count in (4, 7, 3, 5, 2) if side % count == 0), 1)


def mixes(shape, k):
    """op -> arguments after x, boxes of any kind."""
    n, _, h, w = shape
    index = torch.randint(0, max(n, 1), (n, k))
    corner = torch.stack([torch.randint(-3, h + 3, (n, k - 1)), torch.randint(-3, w + 3, (n, k - 1))], 2)
    side = torch.stack([torch.randint(-1, h + 4, (n, k - 1)), torch.randint(-1, w + 4, (n, k - 1))], 2)
    boxes = torch.cat([corner, side], 2).int()
    return {"blend": (index, torch.rand(n, k)), "paste": (index, boxes),
            "patch_mix": (index[:, 0].contiguous(), torch.rand(n, cells(h), cells(w)) < 0.5, torch.rand(n))}


def run(op, x, args, view):
    if op == "view":
        return view.apply(x)
    out = getattr(F, op)(x, *args, view=view)
    return out[0] if op == "patch_mix" else out


def expected(op, x, args, view, dtype=torch.float64):
    out = getattr(reference, "view" if op == "view" else f"view_{op}")(
        x, *args, view.mean, view.std, view.flip, view.shift, dtype, False)
    return out[0] if op == "patch_mix" else out


@pytest.mark.parametrize("flip", [False, True])
def test_reference_pixel_by_pixel(flip):
    x, view = byte_images((4, 2, 5, 7)), seen((4, 2, 5, 7), flip=flip)
    got = reference.view(x, view.mean, view.std, view.flip, view.shift, torch.float64, False)
    for m in range(4):
        for c in range(2):
            for i in range(5):
                for j in range(7):
                    r, q = i + int(view.shift[m, 0]), j + int(view.shift[m, 1])
                    if flip and view.flip[m]:
                        q = 6 - q
                    byte = int(x[m, c, r, q]) if 0 <= r < 5 and 0 <= q < 7 else 0
                    want = (byte / 255 - float(view.mean[c])) / float(view.std[c])
                    assert got[m, c, i, j].item() == pytest.approx(want, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("out", FORMATS)
@pytest.mark.parametrize("last", [False, True], ids=["from_contiguous", "from_channels_last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value(variant, shape, last, out, dtype):
    x, view = byte_images(shape, last), seen(shape, dtype, FORMATS[out])
    for op, args in {"view": (), **mixes(shape, 3)}.items():
        got = run(op, x, args, view)
        assert got.dtype == dtype and got.is_contiguous(memory_format=FORMATS[out])
        if variant != "reference" and x.numel():
            assert got.stride() == torch.empty(shape, memory_format=FORMATS[out]).stride()
        within_budget(got, expected(op, x, args, view), expected(op, x, args, view, dtype), op)


@pytest.mark.parametrize("k", [1, 2, 4, 9])
@pytest.mark.parametrize("layout", FORMATS)
def test_any_number_of_sources(variant, layout, k):
    shape = (5, 3, 12, 30)
    x, view = byte_images(shape), seen(shape, memory_format=FORMATS[layout])
    index = torch.randint(0, 5, (5, k))
    boxes = torch.randint(0, 12, (5, k - 1, 4), dtype=torch.int32)
    for op, args in {"blend": (index, torch.rand(5, k)), "paste": (index, boxes)}.items():
        within_budget(run(op, x, args, view), expected(op, x, args, view), expected(op, x, args, view, torch.float32))


@pytest.mark.parametrize("flip,shift", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("last", [False, True])
def test_without_flips_or_shifts(variant, last, flip, shift):
    x, view = byte_images((6, 3, 8, 16), last), seen((6, 3, 8, 16), flip=flip, shift=shift)
    for op, args in {"view": (), **mixes((6, 3, 8, 16), 2)}.items():
        within_budget(run(op, x, args, view), expected(op, x, args, view), expected(op, x, args, view, torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("out", FORMATS)
def test_a_pixel_of_one_source_is_that_of_the_view_alone(variant, out, dtype):
    """Bit for bit, so that identity plans and whole patches add nothing."""
    shape = (6, 3, 8, 20)
    x, view = byte_images(shape), seen(shape, dtype, FORMATS[out])
    alone = view.apply(x)
    own, index = torch.arange(6), torch.stack([torch.arange(6), torch.randint(0, 6, (6,))], 1)
    same = F.blend(x, index, torch.tensor([[1.0, 0.0]] * 6), view=view)
    assert same_bits(same, alone)
    boxes = torch.randint(-2, 9, (6, 1, 4), dtype=torch.int32)
    assert same_bits(F.paste(x, index, boxes, view=view), F.paste(alone, index, boxes))
    mask = torch.rand(6, 4, 5) < 0.5
    for lam in (0.0, 1.0):
        args = index[:, 1], mask, torch.tensor(lam)
        mixed, weight = F.patch_mix(x, *args, view=view)
        with fastmix.backend("reference"):
            want, true_weight = F.patch_mix(alone, *args)
        assert same_bits(mixed, want) and same_bits(weight, true_weight)
    mixed, weight = F.patch_mix(x, own, mask, torch.rand(6), view=view)
    assert (weight.sum(1) == 1).all()


def test_padding_is_byte_zero_and_far_shifts_leave_nothing_else(variant):
    big = 2**40
    x = byte_images((4, 2, 5, 6))
    x[x == 0] = 1
    shift = torch.tensor([[big, 0], [0, -big], [-2**63, 2**63 - 1], [1, -2]])
    view = View(torch.tensor([0.5, 0.25]), torch.tensor([0.5, 2.0]), torch.tensor([True, False, True, False]), shift)
    got = view.apply(x)
    fill = torch.tensor([-1.0, -0.125]).view(2, 1, 1)
    assert (got[:3] == fill).all()
    padding = torch.zeros(5, 6, dtype=torch.bool)
    padding[4:], padding[:, :2] = True, True
    assert torch.equal(got[3] == fill, padding.expand(2, 5, 6))
    small = view._replace(shift=torch.tensor([[1, -2]] * 4, dtype=torch.int32))
    assert same_bits(small.apply(x)[3], got[3])


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("last", [False, True])
def test_only_the_images_are_read_and_written(variant, last, offset):
    """Bytes around the batch do not count, whatever they are."""
    shape = (4, 3, 6, 21)
    size = torch.Size(shape).numel()
    view, results = seen(shape), []
    args, plain = mixes(shape, 2), byte_images(shape)
    for around in (0, 255):
        storage = torch.full((size + offset + 64,), around, dtype=torch.uint8)
        inside = storage[offset:offset + size]
        x = inside.view(4, 6, 21, 3).permute(0, 3, 1, 2) if last else inside.view(shape)
        x.copy_(plain)
        results.append([run(op, x, a, view) for op, a in {"view": (), **args}.items()])
        assert (storage[:offset] == around).all() and (storage[offset + size:] == around).all()
        assert torch.equal(x, plain)
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("make", [
    lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2), lambda x: x.repeat_interleave(2, 3)[..., ::2],
    lambda x: x.repeat_interleave(2, 0)[::2], lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    lambda x: x.contiguous(memory_format=torch.channels_last).repeat_interleave(2, 0)[::2]],
    ids=["transposed", "strided", "every_other_image", "batch_inside", "every_other_channels_last"])
def test_any_strides(variant, make):
    shape = (4, 3, 8, 16)
    x, view = byte_images(shape), seen(shape, memory_format=torch.contiguous_format)
    for op, args in {"view": (), **mixes(shape, 2)}.items():
        assert same_bits(run(op, make(x), args, view), run(op, x, args, view))
    same = x[:1].expand(shape)
    assert same_bits(view.apply(same), view.apply(same.contiguous()))
    wide = torch.stack([view.shift, view.shift], 2)[..., 0]
    turned = view._replace(shift=wide, mean=view.mean.repeat_interleave(2)[::2])
    assert same_bits(turned.apply(x), view.apply(x))


def test_preserved_format(variant):
    x, view = byte_images((2, 3, 4, 6)), seen((2, 3, 4, 6))
    assert view.apply(x).is_contiguous()
    last = view.apply(byte_images((2, 3, 4, 6), True))
    assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()


@given(st.data())
def test_any_window(data):
    """Every flip and shift of a small image, on the fastest backend of this machine."""
    h, w, c = (data.draw(st.integers(1, high)) for high in (5, 40, 4))
    x = byte_images((2, c, h, w), data.draw(st.booleans()))
    shift = torch.tensor([[data.draw(st.integers(-h - 1, h + 1)), data.draw(st.integers(-w - 1, w + 1))]
                          for _ in range(2)])
    view = View(torch.rand(c), torch.rand(c) + 0.5, torch.tensor([True, False]), shift,
                memory_format=data.draw(st.sampled_from(list(FORMATS.values()))))
    torch.testing.assert_close(view.apply(x).double(), expected("view", x, (), view), rtol=0, atol=1e-6)


def test_threads_change_nothing(variant, threads):
    shape = (9, 3, 40, 70)
    x, view, args = byte_images(shape), seen(shape, torch.bfloat16, torch.channels_last), mixes(shape, 3)
    threads(1)
    alone = {op: run(op, x, a, view) for op, a in args.items()}
    threads(3)
    assert all(same_bits(run(op, x, a, view), alone[op]) for op, a in args.items())


@pytest.mark.parametrize("bad", [4, -1, 2**40])
def test_index_out_of_range(variant, bad, monkeypatch):
    monkeypatch.setattr(dispatch._State, "debug", variant == "reference")  # it may serve a GPU
    x, view = byte_images((4, 3, 6, 10)), seen((4, 3, 6, 10))
    good = torch.tensor([[0, 1], [2, 3], [1, 1], [3, 0]])
    index = good.clone()
    index[1, 1] = bad
    boxes, weight = torch.tensor([[[1, 2, 3, 4]]] * 4, dtype=torch.int32), torch.rand(4, 2)
    mask, lam = torch.rand(4, 3, 5) < 0.5, torch.rand(4)
    cases = {"blend": ((index, weight), (good, weight)), "paste": ((index, boxes), (good, boxes)),
             "patch_mix": ((index[:, 1], mask, lam), (good[:, 1], mask, lam))}
    for op, (args, fine) in cases.items():
        if variant in (*NAN_ROWS, "triton"):
            nan = run(op, x, args, view).isnan()
            assert nan[1].all() and not nan[[0, 2, 3]].any()
            assert same_bits(run(op, x, args, view)[[0, 2, 3]], run(op, x, fine, view)[[0, 2, 3]])
        else:
            with pytest.raises(IndexError, match=rf"{op}: (index|partner) of row 1 is {bad}, want a value in \[0, 4\)"):
                run(op, x, args, view)


def test_nan_lam_reaches_mixed_cells_only(variant):
    x, view = byte_images((4, 3, 8, 8)), seen((4, 3, 8, 8))
    mask, partner = torch.rand(4, 4, 4) < 0.5, torch.tensor([1, 2, 3, 0])
    lam = torch.tensor([float("nan"), 0.5, 0.5, 0.5])
    mixed, weight = F.patch_mix(x, partner, mask, lam, view=view)
    equal = (mask == mask[partner]).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(mixed[0].isnan(), equal[0].expand(3, 8, 8)) and not mixed[1:].isnan().any()
    assert weight[0].isnan().all() and not weight[1:].isnan().any()


def test_fullgraph(variant):
    shape = (6, 3, 8, 16)
    x, view, args = byte_images(shape, True), seen(shape, torch.bfloat16), mixes(shape, 2)

    def step(x, view):
        return [run(op, x, a, view) for op, a in {"view": (), **args}.items()]

    got = compiled(step)(x, view)
    assert all(same_bits(a, b) and a.stride() == b.stride() for a, b in zip(got, step(x, view), strict=True))


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(variant, operators, channels_last):
    if variant == "reference":
        pytest.skip("plain torch")
    shape = (3, 3, 4, 6)
    x, view = byte_images(shape), seen(shape)
    tail = (view.mean, view.std, view.flip, view.shift, 1, channels_last)
    args = mixes(shape, 2)
    torch.library.opcheck(operators.view.default, (x, *tail))
    torch.library.opcheck(operators.view.default, (x, *tail[:2], None, None, 0, channels_last))
    for op, a in args.items():
        torch.library.opcheck(getattr(operators, f"view_{op}").default, (x, *a, *tail))


# ---------------------------------------------------------------- drawing

def test_draw_is_uniform_and_repeats():
    x, mean, std = byte_images((4000, 1, 2, 2)), torch.tensor([0.5]), torch.tensor([0.5])
    view, again = (View.draw(x, mean, std, flip=0.25, pad=2, generator=torch.Generator(x.device).manual_seed(3))
                   for _ in range(2))
    assert torch.equal(view.flip, again.flip) and torch.equal(view.shift, again.shift)
    assert abs(view.flip.float().mean().item() - 0.25) < 0.03
    counts = torch.stack([(view.shift == v).float().mean(0) for v in range(-2, 3)])
    assert (counts - 0.2).abs().max() < 0.03 and counts.sum(0).sub(1).abs().max() < 1e-6
    plain = View.draw(x, mean, std, flip=0, pad=0)
    assert plain.flip is None and plain.shift is None
    assert View.draw(x[:0], mean, std, pad=1).shift.shape == (0, 2)


def test_draw_and_mix_in_one_graph():
    x, y, mean, std = byte_images((8, 3, 8, 8)), torch.arange(8), torch.rand(3), torch.rand(3) + 0.5
    mixer = fastmix.CutMix(1.0)

    def step(x, y):
        view = View.draw(x, mean, std, pad=2, out_dtype=torch.bfloat16, memory_format=torch.channels_last)
        return mixer(x, y, view=view)

    mixed, target = compiled(step)(x, y)
    assert mixed.dtype == torch.bfloat16 and mixed.is_contiguous(memory_format=torch.channels_last)
    assert target.weight.shape == (8, 2)


def test_a_view_is_data():
    view = seen((2, 3, 4, 4), torch.bfloat16, torch.channels_last)
    loaded = pickle.loads(pickle.dumps(view))
    assert loaded.out_dtype == torch.bfloat16 and loaded.memory_format == torch.channels_last
    assert all(torch.equal(a, b) for a, b in zip(loaded[:4], view[:4], strict=True))
    assert view.to("meta").flip.device.type == "meta" and View(view.mean, view.std).to("meta").flip is None


# ---------------------------------------------------------------- mixers

MIXERS = [fastmix.Mixup(1.0), fastmix.CutMix(), fastmix.DMixup(3, 0.5), fastmix.DCutMix(3, 0.5), fastmix.RMix(),
          fastmix.Cutout(4), fastmix.Compose(fastmix.Mixup(1.0), fastmix.Cutout(3))]


@pytest.mark.parametrize("mixer", MIXERS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("enabled", [True, False], ids=["on", "identity"])
def test_mixers_through_a_view(mixer, enabled):
    """Mixing bytes through a view is mixing what the view shows."""
    x, y = byte_images((6, 3, 8, 8)), torch.arange(6)
    view = seen((6, 3, 8, 8), memory_format=torch.channels_last)
    images = view.apply(x)
    saliency = torch.randn(6, 3, 8, 8) if mixer.needs_saliency else None
    mixer.enabled = enabled
    try:
        torch.manual_seed(1)
        mixed, target = mixer(x, y, saliency, view=view)
        torch.manual_seed(1)
        want, true_target = mixer(images, y, saliency)
        plan = mixer.plan(x, saliency)
    finally:
        mixer.enabled = True
    torch.testing.assert_close(mixed, want, rtol=1e-5, atol=1e-5)
    assert torch.equal(target.index, true_target.index) and torch.equal(target.weight, true_target.weight)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    once, twice = plan.apply(x, view=view), plan.mix(x, y, view=view)[0]
    assert same_bits(once, twice)
    if not enabled:
        assert same_bits(mixed, images)


# ---------------------------------------------------------------- errors

X = (3, 2, 4, 6)


@pytest.mark.parametrize("change,x,error,text", [
    ({}, torch.zeros(X), TypeError, "x has dtype float32, want uint8"),
    ({}, torch.zeros(3, 4, dtype=torch.uint8), ValueError, r"x has shape \(3, 4\), want 4 dimensions"),
    ({"mean": 0.5}, None, TypeError, "view.mean is float, want a tensor"),
    ({"mean": torch.zeros(3)}, None, ValueError, r"view.mean has shape \(3,\), want \(2,\), \(C,\)"),
    ({"std": torch.ones(2).double()}, None, TypeError, "view.std has dtype float64, want float32"),
    ({"std": torch.ones(2).requires_grad_()}, None, ValueError, "view.std requires grad"),
    ({"flip": torch.zeros(3)}, None, TypeError, "view.flip has dtype float32, want bool"),
    ({"flip": torch.zeros(2, dtype=torch.bool)}, None, ValueError, r"view.flip has shape \(2,\), want \(3,\), \(N,\)"),
    ({"shift": torch.zeros(3, 2)}, None, TypeError, "view.shift has dtype float32, want int64 or int32"),
    ({"shift": torch.zeros(3, dtype=torch.int64)}, None, ValueError, r"view.shift has shape \(3,\), want \(3, 2\)"),
    ({"out_dtype": torch.int32}, None, TypeError, "view.out_dtype is torch.int32, want float32"),
    ({"memory_format": torch.channels_last_3d}, None, ValueError, "view.memory_format is torch.channels_last_3d"),
    ({"flip": torch.zeros(3, dtype=torch.bool, device="meta")}, None, ValueError, "view.flip is on meta, want cpu"),
])
def test_errors(change, x, error, text):
    view = View(torch.zeros(2), torch.ones(2))._replace(**change)
    x = byte_images(X) if x is None else x
    index, boxes = torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 1, 4, dtype=torch.int32)
    with pytest.raises(error, match=f"View.apply: {text}"):
        view.apply(x)
    with pytest.raises(error, match=f"blend: {text}"):
        F.blend(x, index, torch.ones(3, 2), view=view)
    with pytest.raises(error, match=f"paste: {text}"):
        F.paste(x, index, boxes, view=view)
    with pytest.raises(error, match=f"patch_mix: {text}"):
        F.patch_mix(x, index[:, 0], torch.ones(3, 2, 2, dtype=torch.bool), torch.ones(3), view=view)


def test_more_errors():
    view, x = View(torch.zeros(2), torch.ones(2)), byte_images(X)
    with pytest.raises(TypeError, match=r"blend: view is \(1, 2\), want a fastmix"):
        F.blend(x, torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1), view=(1, 2))
    with pytest.raises(TypeError, match="blend: x has dtype uint8, want float32 or"):
        F.blend(x, torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1))
    with pytest.raises(ValueError, match=r"View.draw: pad is -1, want at least 0"):
        View.draw(x, view.mean, view.std, pad=-1)
    with pytest.raises(ValueError, match=r"View.draw: flip is 1.5, want a value in \[0, 1\]"):
        View.draw(x, view.mean, view.std, flip=1.5)
