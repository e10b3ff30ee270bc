"""A device that stands in for a GPU: pytest --device standin. Its tensors refuse what CUDA tensors refuse.

The values are on the CPU and the reference serves, but a tensor says that it is on "standin": `.numpy()` and
`np.asarray` raise, and so does an operation that takes tensors of both devices, unless that of the CPU is 0-d or an
index. Explicit copies, `.cpu()`, `.item()`, `.tolist()`, are allowed. So what a test forgets to copy is found without a
GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "standin"
_CROSSING = ("_to_copy", "copy_", "_copy_from", "copy")  # what may take tensors of both devices
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")  # indices may be on the CPU
_libraries: list[torch.library.Library] = []


class OnDevice(Tensor):
    """A tensor on the device; host: its values, with the same sizes and strides."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> OnDevice:
        found = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            device=torch.device(NAME, 0), requires_grad=False)
        found.host = host
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
                        "host memory first.")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, device: Any = None,
                   requires_grad: bool = False, **kwargs: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device, requires_grad=requires_grad)

    def tolist(self) -> Any:
        return self.host.tolist()

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_index(index), value)

    def __format__(self, spec: str) -> str:
        return format(self.host.item(), spec) if self.dim() == 0 else repr(self)

    def __repr__(self, **kwargs: Any) -> str:
        return f"{self.host!r} on {NAME}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        memo[id(self)] = copied
        return copied


def _index(index: Any) -> Any:
    """Lists as the CPU's tensors, which may index one of the device."""
    if isinstance(index, tuple):
        return tuple(map(_index, index))
    return torch.tensor(index, device="cpu") if isinstance(index, list) else index


def _name(func: Any) -> str:
    return func._schema.name.split("::")[1]


def _check(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """RuntimeError for tensors of both devices."""
    name = _name(func)
    if name in _CROSSING:
        return
    if name in _INDEXED and not isinstance(args[0], OnDevice):
        raise RuntimeError(f"indices should be on the CPU like the tensor that they index ({func})")
    looked_at = [args[0], *args[2:], *kwargs.values()] if name in _INDEXED and len(args) > 1 else [args, kwargs]
    leaves = [leaf for leaf in tree_flatten(looked_at)[0] if isinstance(leaf, Tensor)]
    on_device = any(isinstance(leaf, OnDevice) for leaf in leaves)
    if on_device and any(leaf.dim() and not isinstance(leaf, OnDevice) for leaf in leaves):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {NAME}:0 and cpu ({func})")


def call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operator on the values; its results are on the device that CUDA would leave them on."""
    _check(func, args, kwargs)
    leaves, spec = tree_flatten((args, kwargs))
    mine = {id(leaf.host): leaf for leaf in leaves if isinstance(leaf, OnDevice)}
    asked = kwargs.get("device")
    to_device = bool(mine) if asked is None else torch.device(asked).type == NAME
    if to_device:
        _check_generator(kwargs.get("generator"))
    hosts = [leaf.host if isinstance(leaf, OnDevice) else leaf for leaf in leaves]
    host_args, host_kwargs = tree_unflatten(hosts, spec)
    if asked is not None:
        host_kwargs["device"] = torch.device("cpu")
    out = func(*host_args, **host_kwargs)
    if asked is not None and not to_device and _name(func) == "_to_copy":
        return out

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor) or not to_device:
            # An in-place operator on a tensor of the CPU returns that tensor.
            return value
        return mine.get(id(value)) if id(value) in mine else OnDevice(value)
    if _name(func) == "copy_" and not isinstance(args[0], OnDevice):
        return args[0]
    return tree_map(place, out)


class Generator(torch.Generator):
    """One of the device: torch.Generator(NAME), which draws what the CPU's would."""

    def __new__(cls, device: Any = "cpu") -> torch.Generator:  # type: ignore[misc]
        made = _GENERATOR("cpu" if torch.device(device).type == NAME else device)
        if torch.device(device).type == NAME:
            _generators[made._cdata] = made
        return made


_GENERATOR = torch.Generator
_generators: dict[int, torch.Generator] = {}  # those of the device, by what they are in C++


def _check_generator(generator: torch.Generator | None) -> None:
    if generator is not None and generator._cdata not in _generators:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")


class _Module(_DummyBackendModule):
    """torch.standin."""

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        pass  # draws come from the CPU's generator

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def install() -> None:
    """Makes the device known to torch; once a process."""
    if _libraries:
        return
    _setup_privateuseone_for_python_backend(NAME, _Module())
    library = torch.library.Library("_", "IMPL")

    def fallback(func: Any, *args: Any, **kwargs: Any) -> Any:
        return call(func, args, kwargs)

    library.fallback(fallback, "PrivateUse1")
    _libraries.append(library)
    # What gets its size or its values from Python does not pass the dispatcher as a whole.
    for make in (torch.tensor, torch.as_tensor, torch.asarray, torch.arange, torch.eye, torch.linspace, torch.randperm):
        setattr(torch, make.__name__, _through_the_cpu(make))
    torch.Generator = Generator  # type: ignore[misc]
    torch.compile = lambda call=None, **how: call if call is not None else lambda function: function  # not traceable


def _through_the_cpu(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(make)
    def made(*args: Any, device: Any = None, requires_grad: bool = False, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor) and make is not torch.tensor:
            return args[0].to(args[0].device if device is None else device, *args[1:], **kwargs)
        wanted = torch.empty(0).device if device is None else torch.device(device)
        with torch._C.DisableTorchFunction():  # else the default device's mode would call this function again
            if wanted.type != NAME:
                return make(*args, device=wanted, requires_grad=requires_grad, **kwargs)
            _check_generator(kwargs.get("generator"))
            return make(*args, device="cpu", **kwargs).to(wanted).requires_grad_(requires_grad)
    return made
