"""How many launches a list operator (`torch._foreach_*`) takes where CUDA's fast path does not apply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def slow_launches(name: str, args: Sequence[Any]) -> int:
    """Launches of a list operator, one for each tensor; 0 where CUDA's fast path applies, or it is none.

    The conditions are those of `can_use_fast_route` in `ATen/native/ForeachUtils.h`: strided tensors without overlap or
    gaps, of one dtype, and lists of equal sizes and strides. Copies may change the dtype; a tensor of one number in the
    place of a list must have theirs.
    """
    if not name.startswith("_foreach"):
        return 0
    lists = [each for each in args if isinstance(each, list | tuple) and each and isinstance(each[0], Tensor)]
    first = lists[0]
    dtypes = [{each.dtype for each in tensors} for tensors in lists]
    scalars = {each.dtype for each in args if isinstance(each, Tensor)}
    is_fast = all(len(found) == 1 for found in dtypes) and scalars <= dtypes[0]
    is_fast &= name == "_foreach_copy_" or all(found == dtypes[0] for found in dtypes)
    is_fast &= all(_is_dense(each) for tensors in lists for each in tensors)
    for other in lists[1:]:
        pairs = zip(first, other, strict=True)
        is_fast &= all(one.shape == two.shape and one.stride() == two.stride() for one, two in pairs)
    return 0 if is_fast else len(first)


def _is_dense(tensor: Tensor) -> bool:
    """Return whether the elements fill their memory once."""
    length = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != length:
            return False
        length *= size
    return True
