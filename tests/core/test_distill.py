import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core import checkpoint
from core.data import Dataset
from core.distill import WeakTeacherWarning, feature_loss, soft_loss
from core.flops import forward_flops_per_image
from core.models import ConvNetConfig, ResNetConfig, ViTConfig, build_model
from core.train import TrainConfig, _Run, check_fit, plan, train

STUDENT = ViTConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2)


@pytest.fixture
def teacher(shapes: Dataset, tmp_path: Path) -> Path:
    """A net that looks at pictures with a normalisation of its own."""
    torch.manual_seed(0)
    config = ConvNetConfig(width=4, num_stages=2)
    model = build_model(config).eval()
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    saved = checkpoint.Checkpoint(
        model=model,
        model_config=config,
        class_names=shapes.class_names,
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.4, 0.3),
        dataset="shapes",
        metrics={"val_accuracy": 0.8},
        training={},
        commit=None,
    )
    checkpoint.save(tmp_path / "teacher", saved)
    return tmp_path / "teacher"


def config(teacher: Path, **fields: Any) -> TrainConfig:
    given = {"model": STUDENT, "epochs": 2, "batch_size": 60, "compile": False, "precision": "float32"}
    return TrainConfig(**{**given, "teacher": str(teacher), "temperature": 2.0, **fields})


def edit(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


class TestSoftLoss:
    def test_is_the_mean_divergence_a_picture_times_temperature_squared(self) -> None:
        student, teacher = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))
        mine, theirs = (student / 3).softmax(1), (teacher / 3).softmax(1)
        expected = 9 * (theirs * (theirs / mine).log()).sum(dim=1).mean()
        torch.testing.assert_close(soft_loss(student, teacher, temperature=3.0, standardise=False), expected)
        assert float(soft_loss(student, student, temperature=3.0, standardise=True)) == pytest.approx(0, abs=1e-6)

    def test_at_a_high_temperature_its_gradient_is_that_of_the_logits_distance(self) -> None:
        """The reason for the square: see section 2.1 of Hinton et al. (2015)."""
        student, teacher = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))
        student.requires_grad_()
        (gradient,) = torch.autograd.grad(soft_loss(student, teacher, temperature=1e3, standardise=False), student)
        centred = [x - x.mean(dim=1, keepdim=True) for x in (student.detach(), teacher)]
        torch.testing.assert_close(gradient, (centred[0] - centred[1]) / 10 / 6, rtol=0.01, atol=1e-4)

    def test_standardised_it_cares_for_neither_scale_nor_offset_of_the_teacher(self) -> None:
        student, teacher = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))
        losses = [soft_loss(student, t, temperature=2.0, standardise=True) for t in (teacher, 5 * teacher + 1)]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


class TestFeatureLoss:
    def test_is_zero_where_the_same_pictures_look_alike_whatever_the_shape(self) -> None:
        features = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))
        rotation = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))[0]
        turned = (features.flatten(1) @ rotation).view(6, 32, 1, 1)
        assert float(feature_loss([features], [turned])) == pytest.approx(0, abs=1e-6)
        assert float(feature_loss([features], [turned.flip(0)])) > 0.01

    def test_pairs_stages_evenly_and_the_last_with_the_last(self) -> None:
        a = [torch.randn(5, 3, generator=torch.Generator().manual_seed(i)) for i in range(6)]
        assert float(feature_loss(a, [a[1], a[3], a[5]])) == pytest.approx(0, abs=1e-7)
        assert float(feature_loss(a, [a[5]])) == pytest.approx(0, abs=1e-7)


def test_both_terms_are_logged_and_add_up(shapes: Dataset, teacher: Path) -> None:
    fields = {"distill_weight": 0.7, "feature_weight": 3.0}
    history = train(config(teacher, **fields), shapes).history
    for row in history:
        total = 0.3 * row["hard_loss"] + 0.7 * row["soft_loss"] + 3.0 * row["feature_loss"]
        assert row["train_loss"] == pytest.approx(total, rel=1e-4)
        assert row["soft_loss"] > 0 and row["feature_loss"] > 0
        assert row["hard_loss"] > row["loss_floor"] > 0


def test_the_teacher_sees_the_students_view_normalised_in_its_own_way(shapes: Dataset, teacher: Path) -> None:
    """A teacher that is the same net as the student, with other statistics, agrees only if its own are used."""
    mean, std = torch.tensor(shapes.mean), torch.tensor(shapes.std)
    model = build_model(STUDENT)
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    saved = checkpoint.load(teacher)
    checkpoint.save(teacher, dataclasses.replace(saved, model=model, model_config=STUDENT))
    run = _Run(config(teacher, color_jitter=0.4, mixup_alpha=1.0), shapes)
    images, _ = run.batches.at(0)
    answers = run._ask_teacher(images)
    assert answers is not None
    pixels = images.float() / 255
    expected = model.eval()(((pixels - torch.tensor(saved.mean)) / torch.tensor(saved.std)).permute(0, 3, 1, 2))
    torch.testing.assert_close(answers[-1], expected, rtol=1e-4, atol=1e-4)
    other = model(((pixels - mean) / std).permute(0, 3, 1, 2))
    assert not torch.allclose(answers[-1], other, rtol=0.01)


def test_a_student_comes_to_agree_with_its_teacher(shapes: Dataset, teacher: Path) -> None:
    history = train(config(teacher, epochs=15, distill_weight=1.0, learning_rate=5e-3), shapes).history
    assert history[-1]["soft_loss"] < 0.5 * history[0]["soft_loss"]


def test_distillation_resumes_bit_identically(shapes: Dataset, teacher: Path, tmp_path: Path) -> None:
    whole = train(config(teacher), shapes, lambda epoch: epoch.save(tmp_path / str(epoch.metrics["epoch"])))
    resumed = train(config(teacher), shapes, resume_from=tmp_path / "1")
    pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_micro_batches_take_the_step_of_the_whole_batch(shapes: Dataset, teacher: Path) -> None:
    fields = {"optimizer": "sgd", "learning_rate": 0.1, "mixup_alpha": 0.8}
    whole = train(config(teacher, **fields), shapes)
    parts = train(config(teacher, micro_batch_size=17, **fields), shapes)  # of 60: the last part is smaller
    for mine, theirs in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    for name in ("train_loss", "loss_floor", "hard_loss", "soft_loss"):
        assert parts.history[-1][name] == pytest.approx(whole.history[-1][name], rel=1e-4)


def test_the_features_loss_is_part_of_the_training_flops(shapes: Dataset, teacher: Path) -> None:
    plans = [plan(config(teacher, feature_weight=weight), len(shapes.train)) for weight in (0.0, 1.0)]
    pictures = torch.zeros(1, 3, 32, 32)
    mine, theirs = (net.stages(pictures) for net in (build_model(STUDENT), checkpoint.load(teacher).model))
    assert (len(mine), len(theirs)) == (2, 2)  # every stage is in a pair
    # Of each pair a product of the student's features with its two backward, and one of the teacher's.
    by_hand = sum(2 * 60 * (3 * a.numel() + b.numel()) for a, b in zip(mine, theirs, strict=True))
    assert plans[1].flops_per_image - plans[0].flops_per_image == pytest.approx(by_hand)
    assert plans[0].flops_per_image < plans[1].flops_per_image


def test_the_teachers_flops_are_counted_apart_or_within_the_budget(shapes: Dataset, teacher: Path) -> None:
    cost = forward_flops_per_image(checkpoint.load(teacher).model, (3, 32, 32))
    apart = config(teacher, epochs=None, flops=1e9)
    within = dataclasses.replace(apart, count_teacher=True)
    alone = dataclasses.replace(apart, temperature=None)
    plans = [plan(c, 360) for c in (apart, within, alone)]
    assert plans[0].num_steps == plans[2].num_steps
    assert plans[0].teacher_flops(10) == 10 * 60 * cost
    assert plans[2].teacher_flops(10) == 0
    assert plans[1].num_steps < plans[0].num_steps
    assert [p.train_flops(p.num_steps) for p in plans] == pytest.approx([1e9] * 3, rel=0.1)
    assert plans[0].train_flops(plans[0].num_steps) + plans[0].teacher_flops(plans[0].num_steps) > 1.2e9
    assert plans[1].train_flops(10) == plans[0].train_flops(10) + plans[1].teacher_flops(10)
    rows = [train(config(teacher, epochs=1, count_teacher=counted), shapes).history[-1] for counted in (False, True)]
    for row in rows:
        assert row["teacher_flops"] == row["images_seen"] * cost
    assert rows[1]["train_flops"] == rows[0]["train_flops"] + rows[1]["teacher_flops"]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        checkpoint.load(teacher).model(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == cost


def test_a_teacher_without_temperature_costs_nothing_and_changes_nothing(shapes: Dataset, tmp_path: Path) -> None:
    with_path = train(config(tmp_path / "nowhere", temperature=None, epochs=1), shapes)
    assert "soft_loss" not in with_path.history[-1] and with_path.history[-1]["teacher_flops"] == 0


def test_unfit_teachers_are_refused_before_training(shapes: Dataset, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match="is not a checkpoint folder"):
        train(config(tmp_path / "nowhere"), shapes)
    edit(teacher, class_names=[f"c{i}" for i in range(10)])
    with pytest.raises(ValueError, match=r"has other classes \(c0, c1, c2, ... 10 in all\) than the data"):
        train(config(teacher), shapes)
    edit(teacher, class_names=list(shapes.class_names), model_config={"image_size": 16, "width": 4, "num_stages": 2})
    with pytest.raises(ValueError, match="takes 16x16 pictures with 3 channels, the data has 32x32 with 3"):
        train(config(teacher), shapes)
    edit(teacher, model="resnet", model_config=dataclasses.asdict(ResNetConfig(width=8)))
    with pytest.raises(checkpoint.CheckpointError, match="does not fit the model"):
        train(config(teacher), shapes)


def test_a_teacher_below_the_target_warns(shapes: Dataset, teacher: Path) -> None:
    check_fit(config(teacher, target_accuracy=0.7), shapes)
    with pytest.warns(WeakTeacherWarning, match=r"reached 80.0% in validation, and its student should reach 90.0%"):
        check_fit(config(teacher, target_accuracy=0.9), shapes)
    edit(teacher, metrics={})
    with pytest.warns(WeakTeacherWarning, match="has no recorded val_accuracy"):
        check_fit(config(teacher, target_accuracy=0.9), shapes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, or None, got 0.0"),
        ({"temperature": -1.0}, "temperature must be positive, or None, got -1.0"),
        ({"distill_weight": 1.5}, r"distill_weight must be in \[0, 1\], got 1.5"),
        ({"feature_weight": -1.0}, "feature_weight must be at least 0"),
        (
            {"feature_weight": 1.0, "model": dataclasses.replace(STUDENT, patch_drop_rate=0.5)},
            "patch_drop_rate must be 0 with it",
        ),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(Path("teacher"), **fields)


def test_a_temperature_without_a_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature=2.0 needs a teacher: the folder of a checkpoint"):
        TrainConfig(model=STUDENT, epochs=1, temperature=2.0)
