import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from core.segment.evaluation import score
from core.segment.labelled import Labelled, labelled_scene
from core.segment.options import MAX_PROMPT_CHARACTERS, SegmentOptions
from core.segment.overlay import draw_heatmap, draw_overlay
from core.segment.pipeline import Segmenter
from core.segment.results import PromptResult

FIRST_SEED = 30_000_000  # neither trained on, nor calibrated with, nor of the benchmark


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.from_preset("demo", precision="float32")


@pytest.fixture(scope="module")
def scenes() -> list[Labelled]:
    return [labelled_scene(FIRST_SEED + index) for index in range(12)]


@pytest.fixture(scope="module")
def answers(segmenter: Segmenter, scenes: list[Labelled]) -> list[list[PromptResult]]:
    return segmenter.segment([scene.image for scene in scenes], [scene.prompts for scene in scenes])


def same(one: PromptResult, other: PromptResult) -> bool:
    return (
        one.found == other.found
        and one.presence == pytest.approx(other.presence, abs=1e-3)
        and len(one.instances) == len(other.instances)
        and float((one.mask != other.mask).mean()) < 1e-3
    )


def all_same(row: list[PromptResult], other: list[PromptResult]) -> bool:
    return len(row) == len(other) and all(map(same, row, other))


def test_objects_are_found_and_absent_ones_are_not(scenes: list[Labelled], answers: list[list[PromptResult]]) -> None:
    scores = score(scenes, answers)
    assert scores.mean_iou > 0.85
    assert scores.found > 0.9
    assert scores.absent > 0.9


def test_every_answer_explains_itself(answers: list[list[PromptResult]]) -> None:
    for result in (result for row in answers for result in row):
        assert 0 < result.threshold < 1
        assert 0 <= result.presence <= 1
        assert result.found == bool(result.instances) == (result.reason is None)
        for instance in result.instances:
            assert instance.why
            assert 0 <= instance.score <= 1
            assert instance.candidates
            assert instance.mask.sum() == instance.area > 0
            left, top, right, bottom = instance.box_xyxy
            assert instance.mask[top:bottom, left:right].sum() == instance.area


def test_a_picture_is_answered_alike_alone_and_among_others(
    segmenter: Segmenter, scenes: list[Labelled], answers: list[list[PromptResult]]
) -> None:
    """Ragged prompts, pictures of one call, prompts of one picture: none changes another's answer."""
    mixed = segmenter.segment(
        [scene.image for scene in scenes[:3]],
        [scenes[0].prompts[:1], scenes[1].prompts, scenes[2].prompts[2:4]],
        SegmentOptions(resolve_overlaps=False),
    )
    assert [len(row) for row in mixed] == [1, len(scenes[1].prompts), 2]
    for scene, row, first in zip(scenes, mixed, (0, 0, 2), strict=False):
        for offset, result in enumerate(row):
            prompt = scene.prompts[first + offset]
            ((alone,),) = segmenter.segment([scene.image], [[prompt]], SegmentOptions(resolve_overlaps=False))
            assert result.prompt == prompt
            assert same(alone, result)


def test_a_repeated_prompt_is_worked_on_once(segmenter: Segmenter, scenes: list[Labelled]) -> None:
    first, second, *_ = scenes[0].prompts
    (results,) = segmenter.segment([scenes[0].image], [[first, second, f"  {first} "]])
    assert [result.prompt for result in results] == [first, second, first]
    assert results[0] is results[2]


def test_an_encoded_picture_is_answered_alike(
    segmenter: Segmenter, scenes: list[Labelled], answers: list[list[PromptResult]]
) -> None:
    encoded = segmenter.encode([scene.image for scene in scenes[:4]])
    for _ in range(2):
        again = segmenter.segment_encoded(encoded, [scene.prompts for scene in scenes[:4]])
        assert all(
            same(a, b) for row, other in zip(again, answers[:4], strict=True) for a, b in zip(row, other, strict=True)
        )
    assert all(picture.nbytes > picture.image.nbytes for picture in encoded)


def test_threads_do_not_disturb_one_another(
    segmenter: Segmenter, scenes: list[Labelled], answers: list[list[PromptResult]]
) -> None:
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda scene: segmenter.segment([scene.image], [scene.prompts])[0], scenes[:8]))
    assert all(
        same(a, b) for row, other in zip(rows, answers[:8], strict=True) for a, b in zip(row, other, strict=True)
    )


def test_without_refinement_the_coarse_masks_are_the_answer(segmenter: Segmenter, scenes: list[Labelled]) -> None:
    ((result,),) = segmenter.segment(
        [scenes[0].image], [scenes[0].prompts[:1]], SegmentOptions(refine=False, min_presence=0.0)
    )
    assert {instance.source for instance in result.instances} == {"coarse"}
    assert {instance.why for instance in result.instances} == {"SAM 2 was not asked"}


def test_several_objects_of_one_prompt_are_several_instances(segmenter: Segmenter) -> None:
    image = np.full((256, 256, 3), 120, np.uint8)
    rows, columns = np.mgrid[:256, :256]
    for x, y in ((60, 60), (190, 80), (120, 190)):
        image[(rows - y) ** 2 + (columns - x) ** 2 < 30**2] = (220, 20, 20)
    ((result,),) = segmenter.segment([image], [["red object"]])
    assert len(result.instances) == 3
    assert all(instance.area == pytest.approx(np.pi * 30**2, rel=0.15) for instance in result.instances)
    ((one,),) = segmenter.segment([image], [["red object"]], SegmentOptions(max_instances=1))
    assert [instance.box_xyxy for instance in one.instances] == [result.instances[0].box_xyxy]


def test_a_blank_picture_shows_nothing(segmenter: Segmenter) -> None:
    for value in (0, 128, 255):
        ((result,),) = segmenter.segment([np.full((90, 120, 3), value, np.uint8)], [["red circle"]])
        assert not result.found
        assert result.reason
        assert not result.mask.any()


@pytest.mark.parametrize("shape", [(1, 1), (2, 300), (20, 20_000), (20_000, 20), (37, 53)])
def test_odd_sizes_are_answered(segmenter: Segmenter, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    ((result,),) = segmenter.segment([image], [["blue star"]])
    assert result.mask.shape == shape
    assert result.mask.mean() < 0.9
    assert draw_overlay(image, [result]).shape == image.shape


def test_a_large_picture_is_answered_without_its_logits_in_full(segmenter: Segmenter) -> None:
    scene = labelled_scene(FIRST_SEED, short_side=1500)
    encoded = segmenter.encode([scene.image])
    tracemalloc.start()
    segmenter.segment_encoded(encoded, [scene.prompts], SegmentOptions(zoom=False))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 1500**2


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "I;16", "1", "HSV", "YCbCr"])
def test_odd_modes_are_answered(segmenter: Segmenter, scenes: list[Labelled], mode: str) -> None:
    picture = Image.fromarray(scenes[0].image)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 256)
    elif mode == "LA":
        picture = picture.convert("L").convert("LA")
    elif mode in ("HSV", "YCbCr", "CMYK", "1", "L", "RGBA", "P"):
        picture = picture.convert(mode)
    ((result,),) = segmenter.segment([picture], [["circle"]])
    assert result.mask.shape == scenes[0].image.shape[:2]


def test_two_hundred_prompts_are_answered(segmenter: Segmenter, scenes: list[Labelled]) -> None:
    prompts = [scenes[0].prompts[0], *(f"thing number {number}" for number in range(199))]
    (results,) = segmenter.segment([scenes[0].image], [prompts], SegmentOptions(zoom=False))
    assert [result.prompt for result in results] == prompts


@pytest.mark.parametrize(
    "prompts, problem",
    [
        ([], "at least one prompt"),
        ([""], "prompt 1 is empty"),
        (["circle", " \t\x00"], "prompt 2 is empty"),
        (["x" * (MAX_PROMPT_CHARACTERS + 1)], "501 characters"),
        ("circle", "must be a list"),
    ],
)
def test_bad_prompts_are_refused(segmenter: Segmenter, scenes: list[Labelled], prompts: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        segmenter.segment([scenes[0].image], [prompts])  # type: ignore[list-item]


def test_a_prompt_is_as_long_as_the_model_reads_at_most(segmenter: Segmenter, scenes: list[Labelled]) -> None:
    longest = " ".join(["small"] * 13 + ["star"])
    (results,) = segmenter.segment([scenes[0].image], [[longest]], SegmentOptions(refine=False, zoom=False))
    assert results[0].prompt == longest


@pytest.mark.parametrize(
    "image",
    [
        np.full((8, 8, 3), np.nan, np.float32),
        np.full((8, 8, 3), 7.0, np.float32),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((8,), np.uint8),
        np.zeros((8, 8, 3), np.int64),
        "picture.png",
        None,
    ],
    ids=["nan", "out of range", "empty", "two channels", "one axis", "int64", "text", "None"],
)
def test_what_is_no_picture_is_refused(segmenter: Segmenter, image: object) -> None:
    with pytest.raises(ValueError, match="picture"):
        segmenter.segment([image], [["circle"]])


def test_one_list_of_prompts_a_picture(segmenter: Segmenter, scenes: list[Labelled]) -> None:
    with pytest.raises(ValueError, match="1 pictures with 2 lists"):
        segmenter.segment([scenes[0].image], [["circle"], ["star"]])


@pytest.mark.parametrize(
    "options",
    [{"threshold": 0.0}, {"threshold": 2.0}, {"threshold": float("nan")}, {"max_instances": 0}, {"min_presence": 2.0}],
)
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SegmentOptions(**options)  # type: ignore[arg-type]


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(ValueError, match="demo, tiny"):
        Segmenter.from_preset("huge")


def test_drawings_have_the_pictures_size(scenes: list[Labelled], answers: list[list[PromptResult]]) -> None:
    image = scenes[0].image
    before = image.copy()
    drawn = draw_overlay(image, answers[0])
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert (drawn != image).any()
    np.testing.assert_array_equal(image, before)
    assert draw_heatmap(answers[0][0].heatmap, (256, 256), image).shape == image.shape
