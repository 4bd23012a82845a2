import threading

import pytest
import torch
from torch.nn import functional as F

from core.segment.encoding import encoding, parts

CPU = torch.device("cpu")


def draw(*shape: int) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=random, dtype=torch.bfloat16) for _ in range(3))


@pytest.mark.parametrize("shape", [(9, 1, 64, 24), (1, 2, 1300, 24)], ids=["windows", "more than one part of queries"])
@pytest.mark.parametrize("scale", [None, 0.1])
def test_attention_in_bfloat16_is_that_of_float32(shape: tuple[int, ...], scale: float | None) -> None:
    query, key, value = draw(*shape)
    with encoding(CPU, "bf16"):
        found = F.scaled_dot_product_attention(query, key, value, scale=scale)
    exact = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), scale=scale)
    fused = F.scaled_dot_product_attention(query, key, value, scale=scale).float()
    # One rounding of the weights more than PyTorch's own kernel makes, whose error is the measure.
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).abs().mean() < 2.5 * (fused - exact).abs().mean()


@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": torch.ones(64, 64, dtype=torch.bool).tril()}])
def test_attention_that_is_masked_stays_pytorchs(options: dict[str, object]) -> None:
    query, key, value = draw(2, 1, 64, 24)
    with encoding(CPU, "bf16"):
        found = F.scaled_dot_product_attention(query, key, value, **options)  # type: ignore[arg-type]
    assert torch.equal(found, F.scaled_dot_product_attention(query, key, value, **options))  # type: ignore[arg-type]


def test_float32_is_left_alone() -> None:
    query, key, value = (x.float() for x in draw(2, 1, 64, 24))
    alone = F.scaled_dot_product_attention(query, key, value)
    with encoding(CPU, "float32"):
        assert torch.equal(F.scaled_dot_product_attention(query, key, value), alone)


def test_other_threads_are_left_alone() -> None:
    query, key, value = draw(2, 1, 64, 24)
    alone = F.scaled_dot_product_attention(query, key, value)
    seen: list[torch.Tensor] = []
    with encoding(CPU, "bf16"):
        thread = threading.Thread(target=lambda: seen.append(F.scaled_dot_product_attention(query, key, value)))
        thread.start()
        thread.join()
    assert torch.equal(seen[0], alone)


def test_a_cpu_is_given_few_sizes_of_parts_and_every_row_once() -> None:
    for count in range(40):
        for at_most in range(1, 20):
            rows = [list(range(count))[part] for part in parts(count, at_most, CPU)]
            assert [row for part in rows for row in part] == list(range(count))
            assert {len(part) for part in rows} <= {size for size in (1, 2, 4, 8, 16) if size <= at_most}
    assert [part.stop - part.start for part in parts(23, 16, CPU)] == [16, 4, 2, 1]


def test_other_devices_are_given_the_largest_parts() -> None:
    assert list(parts(23, 16, torch.device("cuda"))) == [slice(0, 16), slice(16, 23)]
