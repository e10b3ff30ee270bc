"""Strategies for `fastmix.functional`."""

from __future__ import annotations

from .strategies import strategy
from .values import FLOATS, ODD_CHOICES, ODD_INTEGERS, ODD_NUMBERS, ODD_PAIRS, Call, Drawing

KINDS = ("'full'", "'diag'", "'shared'", "'identity'")
REDUCTIONS = ("'mean'", "'sum'", "'none'")
SIDES = (4, 8, 6, 12, 2, 1, 16, 10)


def wide(dtype: str) -> str:
    """What sums of a dtype are kept in."""
    return "float64" if "float64" in dtype else "float32"


def model(channels: int) -> str:
    """Source of a small network on images, also on clips."""
    return ("torch.nn.Sequential(torch.nn.Flatten(2), torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten(), "
            f"torch.nn.Linear({channels}, 5))")


def images(d: Drawing, n: int, *, name: str = "x", dtype: str | None = None, gradient: bool = True,
           sides: tuple[int, ...] = SIDES) -> tuple[str, tuple[int, ...], str]:
    """(variable, shape, dtype) of images; now and then of a clip."""
    shape = (n, d.size(3, 1, 2, 5), *([d.size(2, 1, 3)] if d.one_in(10) else []), d.size(*sides), d.size(*sides))
    dtype = d.pick(*FLOATS) if dtype is None else dtype
    if dtype == "torch.uint8":
        return d.whole(name, 256, shape, dtype), shape, dtype
    return d.floats(name, shape, (dtype,), gradient=gradient), shape, dtype


def masks(d: Drawing, n: int) -> tuple[str, tuple[int, ...], str]:
    """The same of a label map or mask."""
    shape = (n, *d.pick((), (1,), (2, 3)), d.size(*SIDES), d.size(*SIDES))
    dtype = d.pick("torch.int64", "torch.int32", "torch.uint8", "torch.bool")
    if dtype == "torch.bool":
        return d.bools("x", shape), shape, dtype
    return d.whole("x", 10, shape, dtype), shape, dtype


def view(d: Drawing, n: int, channels: int, clip: bool = False) -> tuple[str, str]:
    """(source of a view of such bytes, the dtype that comes out)."""
    fields = [d.floats("view.mean", (channels,), ("torch.float32",)),
              d.tensor("view.std", f"torch.rand({channels}) + 0.1", (channels,))]
    flip = d.bools("view.flip", (n,)) if d.one_in(2) else "None"
    shift = d.whole("view.shift", 4, (n, 2), d.pick("torch.int64", "torch.int32"), -3) if d.one_in(2) else "None"
    dtype = d.option("view.out_dtype", FLOATS, ("torch.int32", "torch.complex64", "None", "'float32'", "torch.uint8"))
    formats = ("torch.preserve_format", "torch.contiguous_format", *(() if clip else ("torch.channels_last",)))
    layout = d.option("view.memory_format", formats, ("torch.channels_last", "torch.channels_last_3d", "None", "'cl'"))
    return f"View({', '.join(fields)}, {flip}, {shift}, {dtype}, {layout})", dtype


def seen(d: Drawing, n: int, **how: tuple[int, ...]) -> tuple[str, tuple[int, ...], str, str]:
    """(variable of images, shape, dtype that comes out, ``, view=...`` or nothing)."""
    if d.one_in(4):
        x, shape, _ = images(d, n, dtype="torch.uint8", **how)
        source, dtype = view(d, n, shape[1], len(shape) == 5)
        return x, shape, dtype if dtype in FLOATS else FLOATS[0], f", view={source}"
    x, shape, dtype = images(d, n, **how)
    return x, shape, dtype, ""


@strategy("functional.blend")
def blend(d: Drawing) -> Call:
    n, k = d.rows(), d.size(2, 1, 3, 5)
    if d.one_in(4):
        shape = (n, *d.pick((7,), (), (3, 5), (2, 3, 4), (1,), (0,), (2, 2, 2, 2, 2)))
        dtype, more = d.pick(*FLOATS), ""
        x = d.floats("x", shape, (dtype,), gradient=True)
    else:
        x, shape, dtype, more = seen(d, n)
    index = d.whole("index", n, (n, k))
    weight = d.tensor("weight", f"torch.rand({n}, {k})", (n, k))
    return d.result(f"F.blend({x}, {index}, {weight}{more})", [(shape, dtype)])


def boxes(d: Drawing, n: int, k: int) -> str:
    return d.whole("boxes", 9, (n, k - 1, 4), "torch.int32", d.pick(0, -3))


@strategy("functional.paste")
def paste(d: Drawing) -> Call:
    n, k = d.rows(), d.size(2, 1, 3, 5)
    x, shape, dtype, more = (*masks(d, n), "") if d.one_in(5) else seen(d, n)
    return d.result(f"F.paste({x}, {d.whole('index', n, (n, k))}, {boxes(d, n, max(k, 1))}{more})", [(shape, dtype)])


@strategy("functional.paste_areas")
def paste_areas(d: Drawing) -> Call:
    n, k = d.rows(), d.pick(2, 1, 3, 5)
    found = d.whole("boxes", 5, (n, k - 1, 4), "torch.int32")
    return d.result(f"F.paste_areas({found}, {d.option('size', ('(8, 8)', '(4, 12)', '(10, 9)'), ODD_PAIRS)})",
                    [((n, k), "float32")])


def cells(d: Drawing, shape: tuple[int, ...]) -> tuple[int, int]:
    """A grid that divides the sides."""
    height, width = shape[-2:]
    return (d.pick(*(p for p in (1, 2, 3, 4, 5, 8) if height % p == 0)),
            d.pick(*(p for p in (1, 2, 3, 4, 5, 8) if width % p == 0)))


def percentile(d: Drawing, n: int) -> str:
    shape = d.pick((), (n,))
    dtype = d.pick("torch.float32", "torch.float64")
    return d.tensor("q", f"torch.rand({shape if shape else '()'}, dtype={dtype})", shape)


@strategy("functional.patch_mix")
def patch_mix(d: Drawing) -> Call:
    n = d.rows()
    x, shape, dtype, more = seen(d, n)
    partner, mask = d.whole("partner", n, (n,)), d.bools("mask", (n, *cells(d, shape)))
    lam = d.tensor("lam", f"torch.rand({d.pick('()', f'({n},)')})", ())
    return d.result(f"F.patch_mix({x}, {partner}, {mask}, {lam}{more})", [(shape, dtype), ((n, 2), "float32")])


@strategy("functional.rmix")
def rmix(d: Drawing) -> Call:
    n = d.rows()
    x, shape, dtype = images(d, n)
    grad = d.floats("grad", shape, (dtype,))
    grid = cells(d, shape)
    q, partner = percentile(d, n), d.whole("partner", n, (n,))
    lam = d.tensor("lam", f"torch.rand({d.pick('()', f'({n},)')})", ())
    return d.result(f"F.rmix({x}, {grad}, {d.option('grid', (str(grid),), ODD_PAIRS)}, {q}, {partner}, {lam})",
                    [(shape, dtype), ((n, 2), "float32"), ((n, *grid), "bool")])


@strategy("functional.saliency_map", "functional.saliency_mask", "functional.saliency_peak")
def saliency(d: Drawing) -> Call:
    n = d.rows()
    grad, shape, dtype = images(d, n, name="grad")
    if d.call.name.endswith("peak"):
        return d.result(f"F.saliency_peak({grad})", [((n, 2), "int64")])
    grid = cells(d, shape)
    option = d.option("grid", (str(grid),), ODD_PAIRS)
    if d.call.name.endswith("map"):
        return d.result(f"F.saliency_map({grad}, {option})", [((n, *grid), wide(dtype))])
    return d.result(f"F.saliency_mask({grad}, {option}, {percentile(d, n)})", [((n, *grid), "bool")])


@strategy("functional.percentile_mask")
def percentile_mask(d: Drawing) -> Call:
    shape = (d.rows(), d.size(2, 1, 3, 8), d.size(2, 1, 3, 8))
    found = d.floats("map", shape, FLOATS[:2])
    return d.result(f"F.percentile_mask({found}, {percentile(d, shape[0])})", [(shape, "bool")])


def colour(d: Drawing, shape: tuple[int, ...]) -> str:
    """``, fill=...`` or nothing."""
    found = d.pick("", ", fill=-1", ", fill=0.25", "odd", "tensor")
    if found == "odd":
        return f", fill={d.option('fill', ('1.0',))}"
    return f", fill={d.floats('fill', (shape[0], shape[1]))}" if found == "tensor" and len(shape) == 4 else (
        "" if found == "tensor" else found)


def moved(d: Drawing, n: int) -> tuple[str, tuple[int, ...], str, str]:
    """(images or masks, shape, dtype, ``, fill=...`` or nothing)."""
    if d.one_in(5):
        x, shape, dtype = masks(d, n)
        ignored = "-100" if dtype in ("torch.int64", "torch.int32") else "1"
        return x, shape, dtype, d.pick("", f", fill={d.option('fill', ('1', '0', ignored))}")
    x, shape, dtype = images(d, n)
    return x, shape, dtype, colour(d, shape)


@strategy("functional.crop")
def crop(d: Drawing) -> Call:
    n = d.rows()
    x, shape, dtype, fill = moved(d, n)
    shift = d.whole("shift", 6, (n, 2), d.pick("torch.int64", "torch.int32"), -5)
    return d.result(f"F.crop({x}, {shift}{fill})", [(shape, dtype)])


@strategy("functional.resized_crop")
def resized_crop(d: Drawing) -> Call:
    n = d.rows()
    x, shape, dtype, fill = moved(d, n)
    made = f"torch.rand({n}, 4{d.pick('', ', dtype=torch.float64')}) * {d.pick(4, 1, 20)} - {d.pick(0, 2)}"
    box = d.tensor("box", made, (n, 4))
    size = d.pick((4, 4), (1, 1), (3, 7), (16, 2), (33, 5))
    return d.result(f"F.resized_crop({x}, {box}, {d.option('size', (str(size),), ODD_PAIRS)}{fill})",
                    [((*shape[:-2], *size), dtype)])


# ---------------------------------------------------------------- losses

def target(d: Drawing, n: int, classes: int, pixels: tuple[int, ...] = (), *, dense: bool = True) -> str:
    """Labels, a SoftTarget or a dense matrix."""
    rows = (n, *pixels)
    form = d.pick("labels", "soft", "soft", *(("dense",) if dense else ()))
    if form == "labels":
        return d.whole("target", classes, rows)
    if form == "dense":
        return d.tensor("target", f"torch.rand{(n, classes, *pixels)}", (n, classes, *pixels))
    return soft(d, "target.", classes, rows, d.size(2, 1, 3))


def soft(d: Drawing, prefix: str, classes: int, rows: tuple[int, ...], k: int) -> str:
    """Source of a SoftTarget, its fields named with a prefix."""
    shape = (*rows, k)
    fields = [d.whole(f"{prefix}index", classes, shape), d.tensor(f"{prefix}weight", f"torch.rand{shape}", shape)]
    if d.one_in(2):
        fields.append(d.tensor(f"{prefix}base", f"torch.rand{rows}", rows))
    return f"SoftTarget({', '.join(fields)})"


def logits(d: Drawing, n: int, classes: int, pixels: tuple[int, ...] = ()) -> tuple[str, str]:
    dtype = d.pick(*FLOATS)
    return d.floats("logits", (n, classes, *pixels), (dtype,), gradient=True), dtype


def loss_sizes(d: Drawing) -> tuple[int, int, tuple[int, ...]]:
    return d.rows(), d.size(5, 2, 1, 3, 10, 17, 100), d.pick((), (), (), (2, 3), (3,), (1, 1), (0, 2))


def weights(d: Drawing, n: int, classes: int, pixels: tuple[int, ...], *, sample: bool = True) -> str:
    found = ""
    rows = (n, *pixels)
    if sample and d.one_in(3):
        found += f", sample_weight={d.tensor('sample_weight', f'torch.rand{rows}', rows)}"
    if d.one_in(3):
        found += f", class_weight={d.tensor('class_weight', f'torch.rand({classes})', (classes,))}"
    return found


def loss_shape(reduction: str, rows: tuple[int, ...]) -> tuple[int, ...]:
    return rows if "none" in reduction else ()


LOSS_OPTIONS = {
    "label_smoothing": (("0.1", "0.0", "1.0", "0"), ODD_NUMBERS),
    "ignore_index": (("-100", "0", "-1", "2**62"), ODD_INTEGERS),
}


@strategy("functional.soft_cross_entropy", "functional.soft_kl", "functional.soft_bce")
def losses(d: Drawing) -> Call:
    n, classes, pixels = loss_sizes(d)
    z, dtype = logits(d, n, classes, pixels)
    t = target(d, n, classes, pixels)
    more = weights(d, n, classes, pixels)
    options = dict(LOSS_OPTIONS)
    if d.call.name.endswith("bce"):
        del options["label_smoothing"]
    reduction = d.option("reduction", REDUCTIONS, ODD_CHOICES)
    name = d.call.name.split(".")[1]
    return d.result(f"F.{name}({z}, {t}{more}{d.options(**options)}, reduction={reduction})",
                    [(loss_shape(reduction, (n, *pixels)), wide(dtype))])


@strategy("functional.soft_target_kl")
def soft_target_kl(d: Drawing) -> Call:
    n, classes, pixels = loss_sizes(d)
    z, dtype = logits(d, n, classes, pixels)
    rows = (n, *pixels)
    if d.one_in(2):
        t = f"{d.whole('target', classes, rows)}, {d.tensor('confidence', f'torch.rand{rows}', rows)}"
    else:
        t = soft(d, "target.", classes, rows, d.size(1, 2, 3))
    weighting = d.option("weighting", ("'sample'", "'none'", "'weight'", "'batch_mean'"), ODD_CHOICES)
    reduction = d.option("reduction", REDUCTIONS, ODD_CHOICES)
    more = weights(d, n, classes, pixels, sample=False) + d.options(ignore_index=LOSS_OPTIONS["ignore_index"])
    return d.result(f"F.soft_target_kl({z}, {t}, weighting={weighting}, reduction={reduction}{more})",
                    [(loss_shape(reduction, rows), wide(dtype))])


# ---------------------------------------------------------------- ISDA

def cov_shape(kind: str, classes: int, width: int) -> tuple[int, ...]:
    return {"'full'": (classes, width, width), "'diag'": (classes, width), "'shared'": (width, width),
            "'identity'": (0,)}[kind]


def covariance(d: Drawing, kind: str, classes: int, width: int) -> str:
    if kind == "'identity'" and d.one_in(2):
        return "None"
    shape = cov_shape(kind, classes, width)
    source = f"torch.rand({', '.join(map(str, shape))}{d.pick('', ', dtype=torch.float64')})"
    if kind in ("'full'", "'shared'"):
        source = f"(lambda r: r @ r.mT)({source})"
    return d.tensor("cov", source, shape, places=kind in ("'diag'", "'identity'"))


def strength(d: Drawing, dtypes: tuple[str, ...] = ("torch.float32", "torch.float64")) -> str:
    if d.one_in(3):
        return d.tensor("strength", f"torch.tensor(0.5, dtype={d.pick(*dtypes)})", ())
    return d.option("strength", ("0.5", "0.0", "2", "1e-3"))


def isda_sizes(d: Drawing) -> tuple[int, int, str, str]:
    """J, A, the kind, ``, kind=...`` where the shape does not tell it."""
    classes, width, kind = d.size(3, 1, 2, 7), d.size(4, 2, 1, 6, 9), d.pick(*KINDS)
    return classes, width, kind, d.pick(f", kind={d.option('kind', (kind,), (*KINDS, *ODD_CHOICES))}",
                                        *([] if classes == width else [""]))


@strategy("functional.isda_logits")
def isda_logits(d: Drawing) -> Call:
    n, (classes, width, kind, named) = d.rows(), isda_sizes(d)
    pixels = d.pick((), (), (2, 3), (3,))
    z, dtype = logits(d, n, classes, pixels)
    weight = d.floats("weight", (classes, width), gradient=True)
    cov, labels = covariance(d, kind, classes, width), d.whole("labels", classes, (n, *pixels))
    options = d.options(ignore_index=LOSS_OPTIONS["ignore_index"])
    return d.result(f"F.isda_logits({z}, {weight}, {cov}, {labels}, {strength(d)}{options}{named})",
                    [((n, classes, *pixels), dtype)])


@strategy("functional.isda_consistency")
def isda_consistency(d: Drawing) -> Call:
    n, (classes, width, kind, named) = d.rows(), isda_sizes(d)
    z, dtype = logits(d, n, classes)
    weight = d.floats("weight", (classes, width), gradient=True)
    cov, reduction = covariance(d, kind, classes, width), d.option("reduction", REDUCTIONS, ODD_CHOICES)
    return d.result(f"F.isda_consistency({z}, {weight}, {cov}, {strength(d)}, reduction={reduction}{named})",
                    [(loss_shape(reduction, (n,)), wide(dtype))])


@strategy("functional.explicit_sda")
def explicit_sda(d: Drawing) -> Call:
    n, (classes, width, kind, named) = d.rows(), isda_sizes(d)
    dtype = d.pick(*FLOATS)
    features = d.floats("features", (n, width), (dtype,), gradient=True)
    weight = d.floats("weight", (classes, width), (dtype,), gradient=True)
    bias = d.floats("bias", (classes,), (dtype,), gradient=True) if d.one_in(2) else "None"
    cov, labels = covariance(d, kind, classes, width), d.whole("labels", classes, (n,))
    samples = d.option("samples", ("3", "1", "10"), ODD_INTEGERS)
    generator = d.option("generator", ("None", "torch.Generator().manual_seed(1)"), ("0", "True"))
    options = d.options(ignore_index=LOSS_OPTIONS["ignore_index"])
    return d.result(f"F.explicit_sda({features}, {weight}, {bias}, {cov}, {labels}, {strength(d)}, {samples}, "
                    f"{generator}{options}{named})", [((), wide(dtype))])


@strategy("functional.covariance_update_")
def covariance_update(d: Drawing) -> Call:
    n, (classes, width, kind, named) = d.rows(), isda_sizes(d)
    state = d.pick("torch.float32", "torch.float64")
    pixels = d.pick((), (), (2, 3))
    count = d.tensor("count", f"torch.zeros({classes}, dtype=torch.int64)", (classes,), kind="count", places=False)
    mean = d.tensor("mean", f"torch.zeros({classes}, {width}, dtype={state})", (classes, width), places=False)
    shape = cov_shape(kind, classes, width)
    cov = d.tensor("cov", f"torch.zeros({', '.join(map(str, shape))}, dtype={state})", shape, places=False)
    features, labels = d.floats("features", (n, width, *pixels)), d.whole("labels", classes, (n, *pixels))
    d.call.changed |= {count, mean, cov}
    options = d.options(ignore_index=(("-100", "None", "0"), ODD_INTEGERS))
    # Twice: the second time there is something to merge with.
    update = f"F.covariance_update_({count}, {mean}, {cov}, {features}, {labels}{options}{named})"
    if d.one_in(3):
        d.step(update)
    return d.result(f"({update}, {count}, {mean}, {cov})",
                    [((), "int64"), ((classes,), "int64"), ((classes, width), state), (shape, state)])


# ---------------------------------------------------------------- curves

@strategy("functional.visibility")
def visibility(d: Drawing) -> Call:
    n = d.rows()
    shift = d.whole("shift", 9, (n, 2), d.pick("torch.int64", "torch.int32"), -8)
    return d.result(f"F.visibility({shift}, {d.option('size', ('(8, 8)', '(4, 12)', '(1, 1)'), ODD_PAIRS)})",
                    [((n,), "float32")])


@strategy("functional.confidence")
def confidence(d: Drawing) -> Call:
    shape = d.pick((3,), (0,), (), (2, 3))
    v = d.tensor("v", f"torch.rand({shape if shape else '()'})", shape)
    k, chance = d.option("k", ("2", "1", "0.5", "4.0")), d.option("chance", ("0.1", "0", "1.0"))
    return d.result(f"F.confidence({v}, {k}, {chance})", [(shape, "float32")])


@strategy("functional.pair_iou")
def pair_iou(d: Drawing) -> Call:
    n = d.rows()
    pair = (d.tensor(name, f"torch.rand({n}, 4) * 8", (n, 4)) for name in ("box_a", "box_b"))
    return d.result(f"F.pair_iou({', '.join(pair)})", [((n,), "float32")])


@strategy("functional.pair_weight")
def pair_weight(d: Drawing) -> Call:
    n = d.rows()
    iou = d.tensor("iou", f"torch.rand({n})", (n,))
    options = d.options(k=(("4", "1", "0.5"), ODD_NUMBERS), chance=(("0.0", "0.5", "1"), ODD_NUMBERS),
                        variant=(("'SA1'", "'SA2'"), ODD_CHOICES),
                        normalise=(("True", "False"), ("None", "1", "'yes'", "torch.tensor(True)")))
    return d.result(f"F.pair_weight({iou}{options})", [((n,), "float32")])
