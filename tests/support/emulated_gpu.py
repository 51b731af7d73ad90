"""A GPU that is not there: what a forward computation would launch on it, and where the host would wait for it.

``with EmulatedGpu() as gpu: loss(gpu.tensor(logits), ...)`` computes on the CPU with tensors that say they are on
``cuda:0``; ``gpu.launches`` counts the operations on them that are no views (a kernel each, or a few), ``gpu.waits``
names what would wait: values read by the host, copies that are not from pinned memory, results of unknown size. A
backward pass needs a true driver.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ASKS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique_consecutive", "_unique2"}


class _OnGpu(torch.Tensor):
    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device="cuda:0"
        )
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} on an emulated GPU that is switched off")


class EmulatedGpu(TorchDispatchMode):
    def __enter__(self):
        self.launches, self.waits, self.pinned = [], [], set()
        torch._C._ensureCUDADeviceGuardSet()  # as FakeTensorMode does: devices are named, none is asked
        torch.cuda._tls.is_initializing = True  # else `.to("cuda")` looks for a driver first
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error):
        del torch.cuda._tls.is_initializing
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*error)

    def tensor(self, value: torch.Tensor, requires_grad: bool = False) -> torch.Tensor:
        return _OnGpu(value).requires_grad_(requires_grad)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name, device = function.__name__.split(".")[0], kwargs.get("device")
        given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        wrappers = {id(value.inner): value for value in given if isinstance(value, _OnGpu)}
        on_gpu = torch.device(device).type == "cuda" if device is not None else bool(wrappers)
        if name in ("is_pinned", "_pin_memory", "pin_memory"):
            self.pinned.add(given[0].data_ptr())
            return False if name == "is_pinned" else given[0]
        if wrappers or on_gpu:
            self._count(function, name, given, on_gpu, kwargs)
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map(lambda value: value.inner if isinstance(value, _OnGpu) else value, (args, kwargs))
        result = function(*args, **kwargs)
        if not on_gpu:
            return result
        return tree_map(
            lambda value: wrappers.get(id(value), _OnGpu(value)) if isinstance(value, torch.Tensor) else value, result
        )

    def _count(self, function, name: str, given: list, on_gpu: bool, kwargs: dict) -> None:
        if name == "_to_copy" and on_gpu != isinstance(given[0], _OnGpu):
            free = kwargs.get("non_blocking") and (not on_gpu or given[0].data_ptr() in self.pinned)
            self.waits += [] if free else ["write" if on_gpu else "read"]
        if name in ASKS:
            self.waits.append(name)
        if name in ("index", "index_put_", "index_put"):  # indices on the host are copied first, masks are counted
            self.waits += [
                f"{name} by the host" for value in given if not isinstance(value, _OnGpu) and value.dtype == torch.int64
            ]
            self.waits += [f"{name} by a mask" for value in given[1:] if value.dtype == torch.bool]
        if on_gpu and not function.is_view and name not in ("_to_copy", "empty", "detach"):
            self.launches.append(name)
