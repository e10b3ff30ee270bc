"""Strategies for losses as modules, targets, views and what goes with training."""

from __future__ import annotations

from .functions import (
    KINDS,
    LOSS_OPTIONS,
    REDUCTIONS,
    images,
    logits,
    loss_sizes,
    masks,
    model,
    soft,
    strength,
    target,
    view,
)
from .mixing import CLASSES, CPU, DEVICES, GENERATORS, ODD_GENERATORS, labels, mixer_of
from .strategies import strategy
from .values import FLOATS, ODD_CHOICES, ODD_INTEGERS, ODD_NUMBERS, Call, Drawing

CRITERIA = {
    "SoftCrossEntropy": LOSS_OPTIONS,
    "SoftTargetKL": {"weighting": (("'sample'", "'none'", "'weight'", "'batch_mean'"), ODD_CHOICES),
                     "ignore_index": LOSS_OPTIONS["ignore_index"]},
    "SoftBCE": {"ignore_index": LOSS_OPTIONS["ignore_index"]},
    "FocalLoss": {"gamma": (("2.0", "0", "0.5"), ODD_NUMBERS), "ignore_index": LOSS_OPTIONS["ignore_index"]},
}


@strategy(*CRITERIA, *(f"{name}.forward" for name in CRITERIA))
def criteria(d: Drawing) -> Call:
    name = d.call.name.split(".")[0]
    n, classes, pixels = loss_sizes(d)
    options = d.options(**CRITERIA[name], reduction=(REDUCTIONS, ODD_CHOICES))
    if d.one_in(3):
        options += f", class_weight={d.floats('class_weight', (classes,))}"
    d.step(f"m = fastmix.{name}({options.removeprefix(', ')})")
    z, _ = logits(d, n, classes, pixels)
    if name == "FocalLoss":
        return d.result(f"m({z}, {d.whole('label', classes, (n, *pixels))})")
    t = target(d, n, classes, pixels, dense=name != "SoftTargetKL")
    more = ""
    if name != "SoftTargetKL" and d.one_in(3):
        more = f", sample_weight={d.tensor('sample_weight', f'torch.rand{(n, *pixels)}', (n, *pixels))}"
    elif name == "SoftTargetKL" and not t.startswith("SoftTarget"):
        more = f", {d.tensor('confidence', f'torch.rand{(n, *pixels)}', (n, *pixels))}"
    return d.result(f"m({z}, {t}{more})")


@strategy("ISDACovariance", "ISDACovariance.update", "ISDACovariance.extra_repr")
def isda_covariance(d: Drawing) -> Call:
    n = d.rows()
    made = isda_module(d, "num_classes", "num_features")
    d.step(f"m = fastmix.ISDACovariance({made})")
    if d.call.name.endswith("repr"):
        return d.result("repr(m)")
    pixels = d.pick((), (), (2, 3))
    features, labels = d.floats("features", (n, 4, *pixels)), d.whole("labels", 3, (n, *pixels))
    options = d.options(ignore_index=(("-100", "None", "0"), ODD_INTEGERS))
    d.step(f"m.update({features}, {labels}{options})")
    return d.result("dict(m.named_buffers())")


def isda_module(d: Drawing, *order: str) -> str:
    sizes = {"num_classes": d.option("num_classes", ("3",), ODD_INTEGERS), "num_features": d.option(
        "num_features", ("4",), ODD_INTEGERS)}
    kind = d.option("kind", KINDS, ODD_CHOICES)
    more = d.options(dtype=(("torch.float32", "torch.float64"), ("torch.float16", "'float32'", "None")),
                     device=(("None", "'cpu'"), DEVICES))
    return f"{', '.join(sizes[name] for name in order)}, {kind}{more}"


@strategy("ISDALoss", "ISDALoss.forward", "ISDALoss.consistency")
def isda_loss(d: Drawing) -> Call:
    n = d.rows()
    options = d.options(**LOSS_OPTIONS)
    d.step(f"m = fastmix.ISDALoss({isda_module(d, 'num_features', 'num_classes')}{options})")
    pixels = d.pick((), (), (2, 3))
    layer = "torch.nn.Conv2d(4, 3, 1)" if pixels else "torch.nn.Linear(4, 3)"
    d.step(f"fc = {d.option('fc', (layer,), ('None', 'torch.nn.ReLU()', 'torch.nn.Linear(3, 4)', 'abs', '0'))}")
    lam = strength(d)
    if d.call.name.endswith("consistency"):
        z, _ = logits(d, n, 3)
        return d.result(f"m.consistency({z}, fc, {lam})")
    dtype = d.pick("torch.float32", "torch.float32", "torch.float64")
    features = d.floats("features", (n, 4, *pixels), (dtype,), gradient=True)
    labels = d.whole("labels", 3, (n, *pixels))
    if dtype == "torch.float64":
        d.step("fc.double()")
    more = f", logits=fc({features})" if d.one_in(3) else ""
    update = d.options(update=(("None", "True", "False"), ("1", "'yes'")))
    return d.result(f"(m({features}, fc, {labels}, {lam}{more}{update}), dict(m.named_buffers()))")


@strategy("isda_strength")
def isda_strength(d: Drawing) -> Call:
    step = d.option("step", ("10", "0", "torch.tensor(10)"), ODD_NUMBERS)
    total = d.option("total", ("100", "1"), ODD_INTEGERS)
    options = d.options(schedule=(("'linear'", "'constant'"), ODD_CHOICES))
    return d.result(f"fastmix.isda_strength({d.option('strength0', ('0.5', '0', '7.5'))}, {step}, {total}{options})")


# ---------------------------------------------------------------- targets and views

@strategy("SoftTarget", *(f"SoftTarget.{name}" for name in (
    "cat", "confidence", "counted_share", "cpu", "cuda", "dense", "device", "hard", "pin_memory", "shape", "size",
    "smooth", "split", "to")))
def soft_target(d: Drawing) -> Call:
    method = d.call.name.partition(".")[2]
    n, pixels = d.rows(), d.pick((), (), (2, 3))
    d.step(f"t = {soft(d, '', 5, (n, *pixels), d.pick(2, 1, 3))}")
    ignored = (("-100", "0"), ODD_INTEGERS)
    if method == "cat":
        other = soft(d, "other.", 5, (d.rows(), *pixels), d.pick(2, 1, 3))
        listed = d.option("targets", (f"[t, {other}]", "[t]", f"(t, {other}, t)"),
                          ("[]", "t", "None", "[None]", "[t, 3]", "3"))
        return d.result(f"{d.pick('SoftTarget', 'torch')}.cat({listed})")
    if method == "dense":
        return d.result(f"t.dense({d.option('num_classes', ('5', '10', '1'), ODD_INTEGERS)})")
    if method in ("hard", "counted_share"):
        return d.result(f"t.{method}({d.options(ignore_index=ignored).removeprefix(', ')})")
    if method == "smooth":
        eps = d.option("eps", ("0.1", "0", "1.0", "torch.tensor(0.1)"))
        classes = d.option("num_classes", ("5", "1"), ODD_INTEGERS)
        return d.result(f"t.smooth({eps}, {classes}{d.options(ignore_index=ignored)})")
    if method == "to":
        return d.result(f"t.to({d.option('device', CPU, DEVICES)})")
    if method in ("pin_memory", "cuda"):
        d.call.good = False  # where there is no GPU
        return d.result(f"t.{method}()")
    if method in ("confidence", "cpu"):
        return d.result(f"t.{method}()")
    if method in ("device", "shape"):
        return d.result(f"(t.{method}, len(t))")
    if method == "size":
        return d.result(f"t.size({d.option('dim', ('', '0', '-1'), ('9', *ODD_INTEGERS))})")
    if method == "split":
        return d.result(f"t.split({d.option('rows', ('1', '2', f'[{n}]'), ('[99]', '[1, -1]', *ODD_INTEGERS))})")
    rows = d.option("rows", ("slice(0, 1)", "slice(None, None, 2)", f"torch.ones({n}, dtype=torch.bool)", "[]",
                             "slice(5, None)"),
                    ("0", "torch.tensor(0)", "'index'", "None", "1.5", "[99]", "[True]", "slice('a')",
                     "torch.ones(99, dtype=torch.bool)",
                     "torch.rand(2)", "(0, 0)"))
    return d.result(f"(t == t, len(t), t[{rows}], list(t))")


@strategy("SoftTarget.from_labels", "SoftTarget.from_confidence")
def soft_target_made(d: Drawing) -> Call:
    n = d.rows()
    if d.call.name.endswith("labels"):
        rows = (n, *d.pick((), (2, 3)))
        return d.result(f"SoftTarget.from_labels({d.whole('y', 5, rows)})",
                        [((*rows, 1), "int64"), ((*rows, 1), "float32")])
    y, p = d.whole("y", 5, (n,)), d.floats("p", (n,))
    return d.result(f"SoftTarget.from_confidence({y}, {p}, {d.option('num_classes', *CLASSES)})")


@strategy("View", "View.apply", "View.apply_mask", "View.draw", "View.to")
def views(d: Drawing) -> Call:
    method = d.call.name.partition(".")[2] or "apply"
    n = d.rows()
    if method == "apply_mask":
        x, shape, _ = masks(d, n)
        d.step(f"v = {view(d, n, 3)[0]}")
        return d.result(f"v.apply_mask({x}{d.options(fill=(('None', '0', '1'), ODD_INTEGERS))})")
    x, shape, _ = images(d, n, dtype="torch.uint8")
    if method == "draw":
        mean = d.floats("mean", (shape[1],), FLOATS[:1])
        std = d.tensor("std", f"torch.rand({shape[1]}) + 0.1", (shape[1],))
        options = d.options(flip=(("0.5", "0", "1"), ODD_NUMBERS), pad=(("2", "0", "9"), ODD_INTEGERS),
                            out_dtype=(FLOATS, ("torch.int32", "None")), generator=(GENERATORS, ODD_GENERATORS))
        d.step(f"v = View.draw({x}, {mean}, {std}{options})")
        return d.result(f"(v.apply({x}), tuple(v))")
    source, dtype = view(d, n, shape[1], len(shape) == 5)
    if method == "to":
        return d.result(f"tuple({source}.to({d.option('device', CPU, DEVICES)}))")
    return d.result(f"{source}.apply({x})", [(shape, dtype)])


# ---------------------------------------------------------------- training

MODELS = ("None", "0", "abs", "torch.nn.Linear", "torch.nn.Linear(2, 2)", "lambda x: 3", "lambda x: x.sum()")


@strategy("input_saliency", "functional.input_saliency")
def input_saliency(d: Drawing) -> Call:
    n = d.rows()
    x, shape, dtype = images(d, n, gradient=False)
    y = d.whole("y", 5, (n,)) if d.one_in(2) else soft(d, "y.", 5, (n,), d.pick(2, 1, 3))
    net = d.option("model", (f"{model(shape[1])}.to({dtype})", "lambda x: x.flatten(2).mean(2)[:, :1] * torch.ones(5)"),
                     MODELS)
    d.step(f"net = {net}")
    options = d.options(create_graph=(("False", "True"), ("None",)), update_stats=(("True", "False"), ("None",)),
                        loss_fn=(("None",), ("0", "'mean'", "lambda z, y: z")))
    d.call.good = d.call.good and len(shape) == 4 and "float16" not in dtype
    return d.result(f"fastmix.input_saliency(net, {x}, {y}{options})", [(shape, dtype)])


@strategy("risk_gap")
def risk_gap(d: Drawing) -> Call:
    n = d.rows()
    x = d.floats("x", (n, 3, 8, 8), FLOATS[:1])
    y = d.whole("y", 5, (n,))
    mixer_of(d)
    d.call.good = False
    loader = d.option("loader", (f"[({x}, {y})]", f"[({x}, {y}), ({x}, {y})]", "[]"),
                      ("None", "3", "[3]", "[(1, 2)]", f"[({x},)]"))
    net = d.option("model", (model(3),), MODELS)
    mixer = d.option("mixer", ("m", "None"), ("0", "fastmix.Mixup", "abs"))
    return d.result(f"fastmix.risk_gap({net}, {loader}, {mixer})")


@strategy("RiskGap", "RiskGap.gap")
def risk(d: Drawing) -> Call:
    return d.result("fastmix.RiskGap(0.5, 1.5).gap")


@strategy("Refinement", "Refinement.begin", "Refinement.extra_repr", "Refinement.first", "Refinement.smooth")
def refinement(d: Drawing) -> Call:
    method = d.call.name.partition(".")[2]
    lr = d.options(lr=(("None", "0.1", "1e-3"), ODD_NUMBERS))
    d.step(f"m = fastmix.Refinement({d.option('epochs', ('3', '10'), ODD_INTEGERS)}, "
           f"{d.option('refine_epochs', ('1', '0', '2'), ODD_INTEGERS)}{lr})")
    if method in ("extra_repr", "first"):
        return d.result("(repr(m), m.first)")
    mixer = d.option("mixer", ("None", "fastmix.Mixup()"), ("0", "abs", "fastmix.Mixup", "torch.nn.Linear(2, 2)"))
    optimizer = d.option("optimizer", ("None", "torch.optim.SGD([torch.zeros(1)], lr=0.5)"),
                         ("0", "abs", "torch.optim.SGD"))
    d.step(f"phase = m.begin({d.option('epoch', ('1', '3', '2'), ODD_INTEGERS)}, {mixer}, {optimizer})")
    if method != "smooth":
        return d.result("phase")
    n = d.rows()
    y = labels(d, n, (n, 3, 4, 4), "target")
    return d.result(f"m.smooth({y}, {d.option('eps', ('0.1', '0.0', '1'))}, {d.option('num_classes', *CLASSES)})")


@strategy("subsample")
def subsample(d: Drawing) -> Call:
    n = d.pick(8, 1, 0, 40)
    cv, labels = d.floats("cv", (n,)), d.whole("labels", 3, (n,))
    ratio = d.option("ratio", ("0.5", "1.0", "1e-9", "1"))
    d.call.good = False  # an interval may be too long for a class
    return d.result(f"fastmix.subsample({cv}, {labels}, {ratio}{d.options(interval=(('1', '2'), ODD_INTEGERS))})")


@strategy("uncertainty")
def uncertainty(d: Drawing) -> Call:
    n = d.pick(4, 2, 1, 5)
    x, y = d.floats("x", (n, 3, 8, 8), FLOATS[:1]), d.whole("y", 5, (n,))
    d.step(f"net = {d.option('model', (model(3),), MODELS)}")
    data = d.option("dataset", (f"torch.utils.data.TensorDataset({x}, {y})", f"list(zip({x}, {y}))"),
                    ("[]", "None", "3", "[1, 2]"))
    options = d.options(anchor=(("0.5", "0.9"), ODD_NUMBERS), others=(("2", "1"), (*ODD_INTEGERS, "10**9")),
                        alpha=(("0.5", "1"), ODD_NUMBERS), batch_size=(("4", "2"), ODD_INTEGERS),
                        seed=(("0", "7"), ODD_INTEGERS), device=(("None", "'cpu'"), DEVICES),
                        state=(("None",), ("0", "'/nowhere/state'", "Path('/nowhere/state')")),
                        progress=(("None", "lambda *a: None"), ("0", "'text'")))
    # A large number of samples takes its time.
    samples = d.option("samples", ("2",), ("-1", "0", "1", "2**63", "2.0", "True", "None", "[2]"))
    if n == 1:
        d.call.good = False
    return d.result(f"tuple(fastmix.uncertainty(net, {data}, samples={samples}{options}))")


@strategy("patch", "unpatch")
def patching(d: Drawing) -> Call:
    """No library is replaced: that would import it."""
    if d.call.name == "unpatch":
        return d.result("fastmix.unpatch()")
    odd = d.spoilt("libraries", ["'keras'", "3", "None", "[]", "torch"])
    return d.result(f"fastmix.patch({odd})")


@strategy("backend", "set_debug")
def switches(d: Drawing) -> Call:
    if d.call.name == "set_debug":
        on = d.option("on", ("True", "False"), ("None", "1", "'no'"))
        return d.result(f"(fastmix.set_debug({on}), "
                        "fastmix.set_debug(False))[0]")
    name = d.option("backend", ("'reference'", "'auto'"), ("'other'", "None", "0", "''", "True", "['cpu']"))
    d.step(f"with fastmix.backend({name}) as b: inside = repr(b)[:9]")
    return d.result("inside")
