"""Strategies for the mixers and their plans."""

from __future__ import annotations

from .functions import boxes, cells, images, masks, model, percentile, seen, soft, view
from .strategies import strategy
from .values import FLOATS, ODD_CHOICES, ODD_INTEGERS, ODD_NUMBERS, ODD_PAIRS, Call, Drawing

GENERATORS = ("None", "torch.Generator().manual_seed(1)")
ODD_GENERATORS = ("0", "True", "'cpu'", "torch.Generator", "np.random.default_rng(0)")
MODES = (("'batch'", "'elem'"), ODD_CHOICES)
SHARED = {"prob": (("1.0", "0.5", "0", "1"), ODD_NUMBERS), "generator": (GENERATORS, ODD_GENERATORS)}
ALPHA = {"alpha": (("1.0", "0.2", "3", "1e-3", "1e-30", "1e30"), ODD_NUMBERS)}
SOFT = {"sigma": (("0.3", "0.0", "1", "1e-3"), ODD_NUMBERS), "k": (("2", "0.5"), ODD_NUMBERS),
        "chance": (("0.1", "None", "0", "1"), ODD_NUMBERS)}
COLOUR = {"fill": (("0.0", "1", "'random'", "-0.5"), (*ODD_NUMBERS, *ODD_CHOICES))}
# Class -> its options, each (good, odd); what has to be given comes first, with a bar.
MIXERS = {
    "Mixup": ALPHA | {"mode": MODES},
    "CutMix": ALPHA | {"mode": MODES},
    "DMixup": {"k": (("3", "1", "2", "7"), (*ODD_INTEGERS, "10**6", "10**9"))} | ALPHA,
    "DCutMix": {"k": (("3", "1", "2", "7"), (*ODD_INTEGERS, "10**6", "10**9"))} | ALPHA,
    "SaliencyDCutMix": {"k": (("3", "1", "2", "7"), (*ODD_INTEGERS, "10**6", "10**9"))} | ALPHA,
    "RMix": ALPHA | {"patches": (("(2, 4)", "(1,)", "[2]", "(2,)", "(1, 2, 4)"),
                                 ("()", "2", "(0,)", "(-1, 2)", "(2.5,)", "(3, 5, 7)", "(10**9,)", "(True,)", "'24'",
                                  "(2**62, 3)", "(1,) * 9", "((2, 4),)", "torch.tensor([2, 4])")),
                     "levels": (("10", "1", "2"), (*ODD_INTEGERS, "10**6", "10**9")),
                     "pairing": (("'random'", "'flip'"), ODD_CHOICES)},
    "RLMix": ALPHA | {"patches": (("2", "1", "4"), (*ODD_INTEGERS, "(2, 4)", "(2,)", "33", "10**9")),
                      "levels": (("10", "1", "2"), (*ODD_INTEGERS, "10**6", "10**9")),
                      "pairing": (("'random'", "'flip'"), ODD_CHOICES)},
    "ManifoldMixup": ALPHA | {"mode": MODES, "layers": (
        ("'auto'", "'input'", "[0, 1]", "['input', '1']"), ("[]", "0", "[-1]", "[99]", "'nowhere'", "[None]", "None",
                                                           "[1.0]", "[torch.nn.Linear(2, 2)]", "[True]", "['']"))},
    "Cutout": {"length": (("None", "3", "0", "1", "99"), (*ODD_INTEGERS, "10**12")), "mode": MODES},
    "SoftCrop": SOFT | COLOUR,
    "SoftResizedCrop": {"size": (("None", "4", "(3, 5)", "[2, 2]"), (*ODD_PAIRS, *ODD_INTEGERS)),
                        "min_size": (("None", "1"), ODD_INTEGERS)} | SOFT | COLOUR,
    "SoftNoise": SOFT | {"sigma": (("0.3", "1", "1e-3"), ODD_NUMBERS), "noise_sigma": (("0.1", "2"), ODD_NUMBERS)},
}
CLASSES = (("5", "1", "2", "1000"), (*ODD_INTEGERS, "10**18"))


def made(d: Drawing, name: str) -> str:
    """Source of a mixer of this class with some of its options."""
    first = f"num_classes={d.option('num_classes', *CLASSES)}" if name.startswith("Soft") else ""
    options = d.options(**MIXERS[name], **SHARED)
    return f"fastmix.{name}({first}{options if first else options.removeprefix(', ')})"


def mixer_of(d: Drawing) -> str:
    """Any mixer, also a group of them; the line that makes it is written down."""
    name = d.pick(*MIXERS, "Compose", "RandomChoice")
    d.step(f"m = {group(d, name) if name in ('Compose', 'RandomChoice') else made(d, name)}")
    return "m"


def group(d: Drawing, name: str) -> str:
    members = [made(d, d.pick("Mixup", "CutMix", "RMix", "SaliencyDCutMix", "SoftCrop", "Cutout"))] + [
        made(d, d.pick("Mixup", "CutMix", "SoftNoise", "DMixup")) for _ in range(d.pick(1, 0, 2))]
    given = d.option("mixers", (", ".join(members),), ("", "3", "None", "torch.nn.Linear(2, 2)", "fastmix.Mixup", "[]",
                                                        "fastmix.Mixup(), fastmix.RMix()"))
    if name == "Compose":
        return f"fastmix.Compose({given}{d.options(**SHARED) if given else ''})"
    weights = d.option("weights", ("None", str([1] * len(members)), str([0.5] * len(members))),
                       ("[]", "[0]", "[-1.0]", "0.5", "'1'", "[float('nan')]", "[None]", "[1, 2, 3, 4]", "abs"))
    return f"fastmix.RandomChoice([{given}], {weights}{d.options(**SHARED)})"


def labels(d: Drawing, n: int, shape: tuple[int, ...], name: str = "y") -> str:
    """Labels as a mixer takes them, also of pixels."""
    form = d.pick("labels", "dense", "soft", *(("map", "dense map") if len(shape) == 4 else ()))
    if form == "labels":
        return d.whole(name, 5, (n,))
    if form == "dense":
        return d.floats(name, (n, d.size(5, 1)))
    if form == "map":
        return d.whole(name, 5, (n, *shape[-2:]))
    if form == "dense map":
        return d.floats(name, (n, 3, *shape[-2:]))
    return soft(d, f"{name}.", 5, (n,), d.pick(2, 1))


def batch(d: Drawing) -> tuple[str, tuple[int, ...], str, str]:
    """(x, its shape, source of the labels and of what else a call takes, the source of a saliency)."""
    n = d.rows()
    x, shape, dtype, seen_through = seen(d, n, sides=(8, 16, 24))  # which all of the patches above divide
    y = labels(d, n, shape)
    saliency = d.floats("saliency", shape, (dtype,))
    return x, shape, f"{y}, saliency={saliency}{seen_through}", saliency


@strategy(*MIXERS, "Compose", "RandomChoice", "Mixer.forward", "RLMix.forward")
def mixers(d: Drawing) -> Call:
    name = d.call.name
    if name == "Mixer.forward":
        mixer_of(d)
    elif name in ("Compose", "RandomChoice"):
        d.step(f"m = {group(d, name)}")
    else:
        d.step(f"m = {made(d, name.split('.')[0])}")
    x, shape, rest, _ = batch(d)
    if name == "RLMix.forward":
        rest += f", q={percentile(d, shape[0])}"
    return d.result(f"m({x}, {rest})")


@strategy("Mixer")
def bare(d: Drawing) -> Call:
    options = d.options(**SHARED, mode=(("'batch'", "None"), ODD_CHOICES))
    return d.result(f"repr(fastmix.mixers.Mixer({options.removeprefix(', ')}))")


@strategy("Mixer.plan", "RLMix.plan", "Mixer.applied", "Mixer.enabled", "Mixer.extra_repr", "Compose.needs_saliency",
          "RandomChoice.needs_saliency", "RandomChoice.choose", "RMix.percentiles", "SoftAugmentation.sigma")
def of_mixers(d: Drawing) -> Call:
    owner, _, method = d.call.name.partition(".")
    if owner in ("Compose", "RandomChoice"):
        d.step(f"m = {group(d, owner)}")
    elif owner == "Mixer":
        mixer_of(d)
    else:
        d.step(f"m = {made(d, {'SoftAugmentation': 'SoftCrop'}.get(owner, owner))}")
    if method == "extra_repr":
        return d.result("repr(m)[:2000]")
    if method == "needs_saliency":
        return d.result("m.needs_saliency")
    if method == "choose":
        return d.result("repr(m.choose())")
    if method == "percentiles":
        return d.result("m.percentiles()")
    x, shape, rest, saliency = batch(d)
    if method == "sigma":
        d.step(f"m.sigma = {d.option('sigma', ('0.1', '0', '2'))}")
        return d.result(f"(m.sigma, m({x}, {rest}))")
    if method == "enabled":
        d.step(f"m.enabled = {d.option('enabled', ('False', 'True'), ('None', '1', 'torch.tensor(True)'))}")
        return d.result(f"(m.enabled, m({x}, {rest}))")
    if method == "applied":
        d.step(f"net = {model(shape[1])}.to({x}.dtype)")
        d.step(f"with m.applied(net, {x}, {rest}, in_eval={d.pick('False', 'True')}) as (images, t): out = net(images)")
        return d.result("(out, t)")
    if owner == "RLMix":
        saliency += f", q={percentile(d, shape[0])}"
    return d.result(f"tuple(m.plan({x}, {saliency}))")


@strategy("ManifoldMixup.applied", "ManifoldMixup.choose", "ManifoldMixup.inside", "ManifoldMixup.names")
def manifold(d: Drawing) -> Call:
    method = d.call.name.split(".")[1]
    d.step(f"m = {made(d, 'ManifoldMixup')}")
    x, shape, rest, _ = batch(d)
    d.step(f"net = {d.option('model', (model(shape[1]),), ('None', '0', 'torch.nn.Linear', 'abs'))}")
    if method in ("choose", "names"):
        return d.result(f"m.{method}(net)")
    if method == "inside":
        d.step(f"plan = m.plan({x})")
        layer = d.option("layer", ("None", "'input'", "'1'"), ("'nowhere'", "99", "-1", "1.5", "[]"))
        d.step(f"with m.inside(net, plan, {layer}) as name: out = net({x}.float())")
        return d.result("(name, out)")
    d.step(f"with m.applied(net, {x}, {rest}) as (images, t): out = net(images.float())")
    return d.result("(out, t)")


# ---------------------------------------------------------------- plans

def blend_plan(d: Drawing, n: int, shape: tuple[int, ...]) -> str:
    k = d.size(2, 1, 3)
    return f"BlendPlan({d.whole('index', n, (n, k))}, {d.tensor('weight', f'torch.rand({n}, {k})', (n, k))})"


def paste_plan(d: Drawing, n: int, shape: tuple[int, ...]) -> str:
    k = d.size(2, 1, 3)
    return (f"PastePlan({d.whole('index', n, (n, k))}, {boxes(d, n, max(k, 1))}, "
            f"{d.tensor('weight', f'torch.rand({n}, {k})', (n, k))})")


def patch_plan(d: Drawing, n: int, shape: tuple[int, ...]) -> str:
    return (f"PatchPlan({d.whole('index', n, (n, 2))}, {d.bools('mask', (n, *cells(d, shape)))}, "
            f"{d.tensor('lam', 'torch.rand(())', ())})")


def curve(d: Drawing, n: int) -> str:
    return ", ".join(d.tensor(name, f"torch.rand({n})", (n,)) for name in ("confidence", "base"))


def cutout_plan(d: Drawing, n: int, shape: tuple[int, ...]) -> str:
    return f"CutoutPlan({d.whole('boxes', 6, (n, 1, 4), 'torch.int32')})"


def crop_plan(d: Drawing, n: int, shape: tuple[int, ...]) -> str:
    return f"CropPlan({d.whole('shift', 5, (n, 2), low=-4)}, {curve(d, n)}, {d.option('fill', ('0.0', '1.5'))})"


def resized_plan(d: Drawing, n: int, shape: tuple[int, ...]) -> str:
    boxes = d.tensor("boxes", f"torch.rand({n}, 4) * 8", (n, 4))
    return (f"ResizedCropPlan({boxes}, {curve(d, n)}, {d.option('fill', ('0.0', '1.5'))}, "
            f"{d.option('size', ('(4, 6)', '(1, 1)'), ODD_PAIRS)})")


def noise_plan(d: Drawing, n: int, shape: tuple[int, ...]) -> str:
    amount = d.tensor("amount", f"torch.rand({n})", (n,))
    return f"NoisePlan({d.floats('noise', shape, FLOATS[:1])}, {amount}, {curve(d, n)})"


def compose_plan(d: Drawing, n: int, shape: tuple[int, ...]) -> str:
    parts = [d.pick(blend_plan, paste_plan, crop_plan)]
    return f"ComposePlan(({parts[0](d, n, shape)},))"


PLANS = {"BlendPlan": blend_plan, "PastePlan": paste_plan, "PatchPlan": patch_plan, "CutoutPlan": cutout_plan,
         "CropPlan": crop_plan, "ResizedCropPlan": resized_plan, "NoisePlan": noise_plan, "ComposePlan": compose_plan}


METHODS = ("apply", "mix", "target", "to")


@strategy(*PLANS, *(f"{name}.{method}" for name in PLANS for method in METHODS), "PatchPlan.weight")
def plans(d: Drawing) -> Call:
    name, _, method = d.call.name.partition(".")
    n = d.rows()
    through = ""
    if method == "apply" and name not in ("BlendPlan", "PatchPlan", "ComposePlan") and d.one_in(4):
        x, shape, _ = masks(d, n)
        shape = shape if len(shape) == 4 else (n, 1, *shape[-2:])
    else:
        seen_through = d.one_in(4)
        x, shape, _ = images(d, n, dtype="torch.uint8" if seen_through else None)
        if seen_through:
            through = f", {view(d, n, shape[1], len(shape) == 5)[0]}"
    d.step(f"plan = {PLANS[name](d, n, shape)}")
    if method == "to":
        return d.result(f"tuple(plan.to({d.option('device', CPU, DEVICES)}))"
                        .replace("tuple", "repr" if name == "ComposePlan" else "tuple"))
    if method == "weight":
        return d.result("plan.weight")
    if method == "target":
        return d.result(f"plan.target({labels(d, n, shape)})")
    if method == "mix":
        return d.result(f"plan.mix({x}, {labels(d, n, shape)}{through})")
    outside = f", outside={d.option('outside', ('None', '1'), ODD_INTEGERS)}" if "Crop" in name and d.one_in(2) else ""
    return d.result(f"plan.apply({x}{through}{outside})" if method else f"(plan.apply({x}{through}), plan)")


CPU = ("'cpu'", "torch.device('cpu')")
DEVICES = ("'nowhere'", "'cuda:99'", "99", "None", "1.5", "torch.float32", "'meta'")
