"""How the models are run: no gradients, mixed precision, in parts and with attention that suit the processor."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from core.runtime import autocast
from core.segment.grounder import Image

# Queries at a time: their scores stay in the processor's cache, and the memory of a global layer stays small.
_QUERIES = 512
# Pixels that a CPU's encoder takes at a time: with few, what its layers hand on stays in the cache.
_PIXELS_ON_A_CPU = 2**19


@contextlib.contextmanager
def encoding(device: torch.device, precision: str) -> Iterator[None]:
    """Everything inside runs as an image encoder should on this device; `precision` as in `core.runtime.autocast`.

    Of the calling thread alone, so that many threads may encode at once.
    """
    with torch.inference_mode(), autocast(device, precision):
        if device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with _AttentionInHalfPrecision():
                yield
        else:
            yield


def parts(count: int, at_most: int, device: torch.device) -> Iterator[slice]:
    """The parts in which a model should take so many rows, each of at most `at_most` (1 or more).

    On a CPU their sizes are powers of two. There every new shape has a kernel compiled, which is then kept: requests
    that share calls would bring ever new ones.
    """
    start = 0
    while start < count:
        size = min(count - start, at_most)
        if device.type == "cpu":
            size = 2 ** (size.bit_length() - 1)
        yield slice(start, start + size)
        start += size


def encoder_batches(images: Sequence[Image], side: int, device: torch.device) -> Iterator[Sequence[Image]]:
    """The pictures as an encoder should take them, which scales each to `side` pixels: on a CPU a few at a time."""
    at_most = max(1, _PIXELS_ON_A_CPU // side**2 if device.type == "cpu" else len(images))
    for part in parts(len(images), at_most, device):
        yield images[part]


class _AttentionInHalfPrecision(TorchFunctionMode):
    """Answers `scaled_dot_product_attention` in bfloat16 by two matrix products and a softmax between them.

    PyTorch's own CPU kernel is made for long sequences in float32: on SAM 2's windows of 64 tokens the products are
    three times faster, on its 4,096 tokens a tenth.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    query: Float[Tensor, "*batch queries dim"],
    key: Float[Tensor, "*batch keys dim"],
    value: Float[Tensor, "*batch keys width"],
    attn_mask: Tensor | None = None,
    **options: Any,
) -> Float[Tensor, "*batch queries width"]:
    plain = attn_mask is None and not any(options.get(name) for name in ("dropout_p", "is_causal", "enable_gqa"))
    if query.dtype != torch.bfloat16 or not plain:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, **options)
    scale = options.get("scale") or query.shape[-1] ** -0.5
    # Laid out once as the product reads it, and not again for every part.
    keys = key.mT.contiguous()
    parts = [((part * scale) @ keys).softmax(-1, dtype=query.dtype) @ value for part in query.split(_QUERIES, dim=-2)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)
