import dataclasses
import gc
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core import checkpoint
from core.augment import Augmentation, normalise
from core.batches import Batches
from core.data import Dataset, ImageSet, make_dataset
from core.evaluate import evaluate
from core.models import ConvNetConfig, HybridConfig, ResNetConfig, ViTConfig
from core.train import EpochReport, NonFiniteLossError, ResumeError, TrainConfig, _Run, plan, target_entropy, train

MODEL = ViTConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2, drop_path_rate=0.2)


def config(**fields: Any) -> TrainConfig:
    given = {"model": MODEL, "epochs": 3, "batch_size": 50, "compile": False, **fields}
    return TrainConfig(**given)


def weights(result: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in result.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("wall_s", "cpu_s", "hardware", "attempt")} for row in history]


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(shapes: Dataset) -> None:
    first, second, other = train(config(), shapes), train(config(), shapes), train(config(seed=1), shapes)
    assert same(weights(first), weights(second))
    assert without_times(first.history) == without_times(second.history)
    assert not same(weights(first), weights(other))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"schedule": "trapezoid", "reports": 4},
        {"precision": "bf16", "ema_decay": 0.0, "micro_batch_size": 20},
        {"optimizer": "muon", "model": ConvNetConfig(width=4), "mixup_alpha": 0.8, "cutmix_alpha": 1.0},
        {"optimizer": "sgd", "model": ResNetConfig(width=8, num_stages=2), "flip": "alternating"},
        {"model": dataclasses.replace(MODEL, patch_drop_rate=0.3), "coarse_image_size": 16},
        {"trivial_augment": True, "color_jitter": 0.3, "random_erasing": 0.5},
    ],
)
def test_resumed_after_any_epoch_the_weights_are_bit_identical(
    shapes: Dataset, tmp_path: Path, fields: dict[str, Any]
) -> None:
    whole = train(config(**fields), shapes, lambda epoch: epoch.save(tmp_path / str(epoch.metrics["epoch"])))
    for epoch in range(1, len(whole.history)):
        torch.manual_seed(epoch)  # whatever the process drew before must not matter
        resumed = train(config(**fields), shapes, resume_from=tmp_path / str(epoch))
        assert same(weights(whole), weights(resumed))
        assert without_times(whole.history) == without_times(resumed.history)
        assert [row["attempt"] for row in resumed.history] == [1] * epoch + [2] * (len(whole.history) - epoch)


@pytest.mark.parametrize("fields", [{}, {"mixup_alpha": 0.8, "label_smoothing": 0.1}, {"coarse_image_size": 16}])
def test_micro_batches_take_the_step_of_the_whole_batch(shapes: Dataset, fields: dict[str, Any]) -> None:
    still = dataclasses.replace(MODEL, drop_path_rate=0.0)
    given = {"model": still, "precision": "float32", "optimizer": "sgd", "learning_rate": 0.1, **fields}
    whole = train(config(**given), shapes)
    parts = train(config(micro_batch_size=15, **given), shapes)  # of a batch of 50: the last part is smaller
    for mine, theirs in zip(weights(whole).values(), weights(parts).values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    for name in ("train_loss", "loss_floor"):
        assert parts.history[-1][name] == pytest.approx(whole.history[-1][name], rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"model": ViTConfig(patch_size=4, embed_dim=128, num_heads=4), "batch_size": 256}, 64),
        ({"model": ViTConfig(patch_size=4, embed_dim=128, num_heads=4), "batch_size": 97}, 97),
        ({"model": ViTConfig(patch_size=4, embed_dim=128, num_heads=4), "batch_size": 16}, 16),
        ({"model": MODEL, "batch_size": 256}, 256),
        ({"model": HybridConfig(trunk_width=4, embed_dim=128, num_heads=4), "batch_size": 256}, 256),
        ({"model": HybridConfig(trunk_width=4), "batch_size": 256, "micro_batch_size": 64}, 64),
        ({"model": MODEL, "batch_size": 16, "micro_batch_size": 64}, 16),
    ],
)
def test_micro_batches_fit_the_cache_and_leave_batch_norm_alone(
    shapes: Dataset, fields: dict[str, Any], size: int
) -> None:
    assert _Run(config(device="cpu", **fields), shapes).micro_batch_size == size


_BEFORE_THE_SCRIPT = """
import functools, sys, torch
from pathlib import Path
from core.data import ImageSet, make_dataset
from core.models import ConvNetConfig, HybridConfig, ResNetConfig, ViTConfig
from core.shapes import CLASS_NAMES, generate
from core.train import TrainConfig, train
torch.set_num_threads(1)
def images(number, seed):
    pixels, labels = generate(number, seed)
    return ImageSet(images=pixels, labels=labels, class_names=CLASS_NAMES)
data = make_dataset(name="shapes", source="generated", train=images(200, 0), test=images(50, 1))
"""


def run_alone(script: str, *words: str) -> None:
    """In a process of its own: the run-time type checks of the tests cannot be compiled."""
    whole = _BEFORE_THE_SCRIPT + textwrap.dedent(script)
    subprocess.run([sys.executable, "-c", whole, *words], cwd=Path(__file__).parents[2], check=True)


@pytest.mark.slow
def test_compiled_training_resumes_bit_identically_too(tmp_path: Path) -> None:
    script = """
        model = ViTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2, drop_path_rate=0.2)
        config = TrainConfig(model=model, epochs=2, batch_size=60, compile=True)
        saved = Path(sys.argv[1])
        whole = train(config, data, lambda e: e.save(saved) if e.metrics["epoch"] == 1 else None)
        resumed = train(config, data, resume_from=saved)
        pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        eager = train(TrainConfig(model=model, epochs=2, batch_size=60, compile=False), data)
        assert abs(eager.history[-1]["train_loss"] - whole.history[-1]["train_loss"]) < 0.01
    """
    run_alone(script, str(tmp_path / "saved"))


def test_the_step_of_every_kind_of_model_is_one_graph() -> None:
    """Traced, and not compiled further, which takes minutes."""
    script = """
        graphs = []
        def count(graph, inputs):
            graphs.append(graph)
            return graph.forward
        torch.compile = functools.partial(torch.compile, backend=count)
        small = {"embed_dim": 16, "depth": 1, "num_heads": 2}
        for model in (
            ViTConfig(patch_size=8, drop_path_rate=0.2, patch_drop_rate=0.2, qk_norm=True, **small),
            HybridConfig(trunk="cnn", trunk_width=4, blocks="encoder", layer_scale=None, **small),
            HybridConfig(trunk="residual_cnn", trunk_width=4, blocks="explicit", **small),
            HybridConfig(trunk="resnet", trunk_width=8, blocks="none"),
            ConvNetConfig(width=4),
            ResNetConfig(width=8, num_stages=2),
        ):
            for precision in ("auto", "bf16"):
                graphs.clear()
                train(TrainConfig(model=model, epochs=1, batch_size=60, precision=precision, compile=True), data)
                assert len(graphs) == 1, (model, precision, len(graphs))
    """
    run_alone(script)


def test_the_callers_random_state_is_left_alone(shapes: Dataset) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(config(epochs=1), shapes)
    assert torch.equal(torch.rand(3), expected)


def test_it_learns(shapes: Dataset) -> None:
    """Overfits 60 pictures: loss, gradient, optimiser and average all work together."""
    few = shapes.train.take(np.arange(60))
    data = dataclasses.replace(shapes, train=few, val=few)
    model = ViTConfig(patch_size=4, embed_dim=48, depth=2, num_heads=3)
    result = train(
        config(model=model, epochs=60, reports=2, batch_size=30, crop_padding=0, flip=False, label_smoothing=0.0), data
    )
    assert result.history[-1]["val_accuracy"] > 0.95
    assert result.history[-1]["train_loss"] < 0.5 < result.history[0]["train_loss"]


@pytest.mark.parametrize(
    ("budget", "images"),
    [({"epochs": 3}, 1080), ({"images": 500, "epochs": None}, 500), ({"flops": 1e8, "epochs": None}, None)],
)
def test_budgets_are_kept_to_a_batch(shapes: Dataset, budget: dict[str, Any], images: int | None) -> None:
    result = train(config(**budget), shapes)
    last = result.history[-1]
    expected = images or 1e8 / plan(config(**budget), 360).flops_per_image
    assert abs(last["images_seen"] - expected) <= 50
    assert last["train_flops"] == pytest.approx(last["images_seen"] * plan(config(**budget), 360).flops_per_image)
    assert last["progress"] == 1


def test_reports_are_even_or_once_a_pass() -> None:
    assert plan(config(epochs=3), 1000).report_steps == (20, 40, 60)
    assert plan(config(epochs=2.5), 1000).report_steps == (20, 40, 50)
    assert plan(config(epochs=3, reports=4), 1000).report_steps == (15, 30, 45, 60)
    assert plan(config(epochs=0.1, reports=50), 1000).report_steps == (1, 2)


def test_every_picture_is_seen_once_a_pass() -> None:
    numbered = ImageSet(
        images=np.arange(70, dtype=np.uint8).repeat(48).reshape(70, 4, 4, 3),
        labels=np.arange(70) % 2,
        class_names=("a", "b"),
    )
    batches = Batches(
        numbered,
        batch_size=30,
        augmentation=Augmentation(crop_padding=1),
        mean=(0.5,) * 3,
        seed=0,
        device=torch.device("cpu"),
    )
    seen = torch.cat([batches.at(step)[0][:, 0, 0, 0] for step in range(7)])
    for start in (0, 70, 140):
        assert sorted(seen[start : start + 70].tolist()) == list(range(70))
    assert seen[:70].tolist() != seen[70:140].tolist()


def test_alternating_flip_mirrors_every_picture_in_every_other_pass() -> None:
    pixels = np.zeros((40, 4, 4, 3), np.uint8)
    pixels[:, :, 0] = np.arange(1, 41)[:, None, None]  # on the left, or on the right where mirrored
    images = ImageSet(images=pixels, labels=np.arange(40) % 2, class_names=("a", "b"))
    wanted = Augmentation(crop_padding=0, flip="alternating")
    batches = Batches(images, batch_size=16, augmentation=wanted, mean=(0.5,) * 3, seed=0, device=torch.device("cpu"))
    stream = torch.cat([batches.at(step)[0][:, 0] for step in range(10)])  # four passes
    mirrored = [set(p[p[:, 3, 0] > 0][:, 3, 0].tolist()) for p in stream.view(4, 40, 4, 3)]
    assert mirrored[0] == mirrored[2] and mirrored[1] == mirrored[3]
    assert mirrored[0] | mirrored[1] == set(range(1, 41)) and not mirrored[0] & mirrored[1]
    assert 8 < len(mirrored[0]) < 32


def test_the_loss_floor_is_what_the_best_logits_reach() -> None:
    labels = torch.tensor([0, 3, 3])
    shares = torch.tensor([[0.7, 0.3, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]])
    for targets in (labels, shares):
        for smoothing in (0.0, 0.1):
            hard = targets if targets.is_floating_point() else torch.nn.functional.one_hot(targets, 4).float()
            best = ((1 - smoothing) * hard + smoothing / 4).clamp(min=1e-30).log()
            loss = torch.nn.functional.cross_entropy(best, targets, label_smoothing=smoothing)
            torch.testing.assert_close(target_entropy(targets, 4, smoothing), loss)


def test_mixing_and_smoothing_raise_the_logged_floor(shapes: Dataset) -> None:
    floors = [
        train(config(epochs=1, label_smoothing=smoothing, mixup_alpha=mixup), shapes).history[-1]["loss_floor"]
        for smoothing, mixup in ((0.0, 0.0), (0.1, 0.0), (0.1, 1.0))
    ]
    assert floors[0] == 0
    assert floors[1] == pytest.approx(-0.91 * np.log(0.91) - 9 * 0.01 * np.log(0.01))
    assert floors[2] > floors[1] + 0.2


@pytest.mark.parametrize(
    "model", [MODEL, ConvNetConfig(width=4, num_stages=2), HybridConfig(trunk_width=4, embed_dim=16, num_heads=2)]
)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_plan_pays_for_shrunk_pictures_and_for_muon(shapes: Dataset, model: Any, optimizer: str) -> None:
    wanted = config(model=model, epochs=None, flops=2e10, coarse_image_size=16, optimizer=optimizer)
    planned = plan(wanted, 360)
    assert planned.coarse_steps == round(planned.num_steps / 2)
    assert planned.train_flops(planned.num_steps) == pytest.approx(2e10, rel=0.05)
    run = _Run(wanted, shapes)
    for first in (0, planned.coarse_steps):  # what a step of each kind really computes
        run.step = first
        with FlopCounterMode(display=False) as counter:
            run.train_until(first + 1)
        counted = planned.train_flops(first + 1) - planned.train_flops(first)
        assert counter.get_total_flops() == pytest.approx(counted, rel=1e-6)


@pytest.mark.parametrize("model", [MODEL, ConvNetConfig(width=4, num_stages=2)])
def test_what_a_run_held_is_free_when_it_is_over(shapes: Dataset, model: Any) -> None:
    """At once, not when Python next looks for circles: a process trains many."""
    gc.collect()
    gc.disable()
    try:
        run = _Run(config(model=model), shapes)
        run.train_until(1)
        held = [weakref.ref(tensor) for tensor in (*run.model.parameters(), *run.averaged.parameters())]
        del run
        assert not any(tensor() is not None for tensor in held)
    finally:
        gc.enable()


def test_the_whitening_suits_every_class_where_pictures_stand_class_by_class() -> None:
    random = np.random.default_rng(0)
    dark = random.integers(0, 40, (1300, 8, 8, 3), np.uint8)
    bright = random.integers(0, 256, (1300, 8, 8, 3), np.uint8)
    pictures = ImageSet(
        images=np.concatenate([dark, bright]), labels=np.arange(2).repeat(1300), class_names=("dark", "bright")
    )
    data = make_dataset(name="sorted", source="generated", train=pictures, test=pictures)
    model = ConvNetConfig(image_size=8, num_classes=2, width=4, num_stages=1)
    run = _Run(config(model=model), data)
    with torch.no_grad():
        seen = run.model.get_submodule("stem")(normalise(run.batches.images, run.mean, run.std))
    outputs = seen.permute(0, 2, 3, 1).reshape(-1, 24)[:, :12]
    torch.testing.assert_close(outputs.T @ outputs / len(outputs), torch.eye(12), rtol=0, atol=0.1)


def test_averaged_batch_norms_are_whole_and_follow_the_running_ones(shapes: Dataset) -> None:
    run = _Run(config(model=ConvNetConfig(width=4), epochs=2), shapes)
    run.train_until(10)
    mine, average = run.model.state_dict(), run.averaged.state_dict()
    assert average["layers.0.bn1.num_batches_tracked"] == mine["layers.0.bn1.num_batches_tracked"] == 10
    assert bool((average["layers.0.bn1.running_var"] > 0).all())
    assert not torch.equal(average["layers.0.bn1.running_var"], mine["layers.0.bn1.running_var"])


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        (ResNetConfig(width=8, num_stages=3), "sgd"),
        (ConvNetConfig(width=8, residual=True), "muon"),
        (HybridConfig(trunk_width=8, embed_dim=32, depth=2, pooling="mean", zero_init_residual=True), "adamw"),
        (HybridConfig(trunk_width=8, embed_dim=32, depth=2, layer_scale=None, blocks="encoder"), "muon"),
    ],
)
def test_every_kind_of_model_learns(shapes: Dataset, model: Any, optimizer: str) -> None:
    few = shapes.train.take(np.arange(60))
    data = dataclasses.replace(shapes, train=few, val=few)
    fields = {"crop_padding": 0, "flip": False, "label_smoothing": 0.0, "weight_decay": 0.0, "ema_decay": 0.9}
    rate = 0.05 if optimizer == "sgd" else 4e-3
    result = train(
        config(model=model, epochs=30, reports=3, batch_size=30, optimizer=optimizer, learning_rate=rate, **fields),
        data,
    )
    assert result.history[-1]["train_loss"] < 0.5 * result.history[0]["train_loss"]
    assert result.history[-1]["val_accuracy"] > 0.7


def test_a_diverging_loss_stops_with_step_and_config(shapes: Dataset) -> None:
    with pytest.raises(NonFiniteLossError, match=r"the loss is (nan|inf) at step \d+ of \d+ with TrainConfig\("):
        train(config(learning_rate=1e30, clip_norm=1e30, epochs=20), shapes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flops": 1e9}, "exactly one budget of flops, images and epochs, got"),
        ({"epochs": None}, "exactly one budget.*none"),
        ({"epochs": float("inf")}, "epochs must be a positive finite number"),
        ({"learning_rate": -1.0}, "learning_rate must be positive, got -1.0"),
        ({"schedule": "linear"}, "schedule must be one of cosine, trapezoid, got 'linear'"),
        ({"precision": "fp8"}, "precision must be 'auto', 'bf16' or 'float32'"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\)"),
        ({"optimizer": "lion"}, "optimizer must be one of adamw, muon, sgd, got 'lion'"),
        ({"micro_batch_size": 0}, "micro_batch_size must be a whole number of at least 1, or None, got 0"),
        ({"batch_size": 1, "mixup_alpha": 0.8}, "mix two pictures of a batch: batch_size must be at least 2, got 1"),
        ({"cutmix_alpha": -1.0}, "cutmix_alpha must be at least 0, got -1.0"),
        ({"random_erasing": 1.5}, r"random_erasing must lie in \[0, 1\], got 1.5"),
        ({"flip": "sometimes"}, "flip must be true, false or 'alternating', got 'sometimes'"),
        ({"coarse_image_size": 32}, "coarse_image_size must be between 0 and 32, or None, got 32"),
        ({"coarse_image_size": 20}, "coarse_image_size=20 does not suit the model: patch_size=8 does not divide"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**fields)


def test_a_model_of_another_shape_is_refused_before_training(shapes: Dataset) -> None:
    with pytest.raises(ValueError, match="takes 16x16 pictures with 3 channels, shapes has 32x32"):
        train(config(model=ViTConfig(image_size=16, patch_size=4)), shapes)
    with pytest.raises(ValueError, match="the model has 7 classes, shapes has 10"):
        train(config(model=dataclasses.replace(MODEL, num_classes=7)), shapes)


def test_resuming_under_another_config_or_from_nothing_is_refused(shapes: Dataset, tmp_path: Path) -> None:
    train(config(epochs=1), shapes, lambda epoch: epoch.save(tmp_path / "saved"))
    with pytest.raises(ResumeError, match=r"another configuration .*learning_rate: 0\.002 there, 0\.001 here"):
        train(config(epochs=1, learning_rate=1e-3), shapes, resume_from=tmp_path / "saved")
    with pytest.raises(ResumeError, match=r"has no train_state\.pt"):
        train(config(epochs=1), shapes, resume_from=tmp_path)
    state = tmp_path / "saved" / "train_state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ResumeError, match="cannot be read"):
        train(config(epochs=1), shapes, resume_from=tmp_path / "saved")


def test_the_saved_folder_is_a_checkpoint_of_what_was_evaluated(shapes: Dataset, tmp_path: Path) -> None:
    reports: list[EpochReport] = []
    result = train(config(epochs=2), shapes, reports.append)
    result.save(tmp_path)
    loaded = checkpoint.load(tmp_path)
    scores = evaluate(loaded.model, shapes.val, loaded.mean, loaded.std)
    assert scores["accuracy"] == result.history[-1]["val_accuracy"] == loaded.metrics["val_accuracy"]
    assert loaded.class_names == shapes.class_names
    assert [report.metrics for report in reports] == result.history


def test_read_only_pictures_can_be_trained_on(shapes: Dataset) -> None:
    """Ray's object store hands out read-only arrays; a copy for every trial would defeat it."""
    images = shapes.train.images.copy()
    images.flags.writeable = False
    frozen = dataclasses.replace(shapes, train=dataclasses.replace(shapes.train, images=images))
    assert train(config(epochs=1), frozen).history[-1]["val_accuracy"] >= 0


def test_sets_smaller_than_a_batch_are_trained_on(shapes: Dataset) -> None:
    tiny = make_dataset(name="tiny", source="generated", train=shapes.train.take(np.arange(60)), test=shapes.test)
    result = train(config(epochs=4, batch_size=128), tiny)
    assert result.history[-1]["images_seen"] % 128 == 0
