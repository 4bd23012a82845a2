import numpy as np
import pytest

from core.segment.scenes import (
    COLOURS,
    SHAPES,
    Query,
    draw_queries,
    generate_scene,
    instance_masks,
    query_masks,
    render,
)


def test_a_seed_gives_the_same_scene_and_the_same_pixels() -> None:
    first, again = render(generate_scene(7)), render(generate_scene(7))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], render(generate_scene(8))[0])


@pytest.mark.parametrize("aspect", [0.5, 1.0, 2.0])
def test_every_object_is_visible_and_inside_the_picture(aspect: float) -> None:
    for seed in range(30):
        scene = generate_scene(seed, aspect=aspect)
        image, object_map = render(scene, 128)
        assert image.shape == (round(128 * max(1 / aspect, 1)), round(128 * max(aspect, 1)), 3)
        assert set(np.unique(object_map)) == set(range(len(scene.objects) + 1))
        for index in range(len(scene.objects)):
            assert (object_map == index + 1).sum() > 40


def test_a_scene_covers_the_same_share_at_every_size() -> None:
    scene = generate_scene(3)
    shares = [(render(scene, size)[1] > 0).mean() for size in (64, 256, 512)]
    assert np.ptp(shares) < 0.01


def test_queries_name_what_they_say() -> None:
    rng = np.random.default_rng(0)
    seen: set[str] = set()
    for seed in range(100):
        scene = generate_scene(seed)
        _, object_map = render(scene, 64)
        queries = draw_queries(scene, rng, num_present=3, num_absent=3)
        masks = query_masks(queries, scene, object_map)
        absent = [query for query in queries if not any(query.matches(thing) for thing in scene.objects)]
        assert len(absent) == 3 and len(set(queries)) == len(queries)
        for query, mask in zip(queries, masks, strict=True):
            parts = instance_masks(query, scene, object_map)
            assert np.array_equal(mask, np.any([np.zeros_like(mask), *parts], axis=0))
            assert mask.any() == (query not in absent)
            seen.update(query.text.split())
    assert {*SHAPES, *COLOURS, "object", "small", "large"} <= seen


def test_a_querys_text_has_its_words_in_the_order_of_english() -> None:
    assert Query(shape="ring", colour="green", size="large").text == "large green ring"
    assert Query(colour="blue").text == "blue object"
    assert Query(noise="dog", colour="pink").text == "pink dog"
