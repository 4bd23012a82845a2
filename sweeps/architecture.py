"""The ladder: from a baseline ViT to a ResNet with a transformer on top, all at the same training FLOPs.

Each row is a design with a recipe of its own. Beside every hybrid stand its trunk alone (global pooling in the
transformer's place) and the trunk with one more stage, at the same FLOPs: what it has over them is attention's share.

    vit                 baseline ViT: crop, flip and label smoothing
    vit-regularised     the same net with augmentation and DropPath
    cnn-encoder         basic CNN + PyTorch's nn.TransformerEncoder
    cnn                 its control: the CNN alone, pooled
    cnn-deeper          and the CNN with a third stage where the encoder was
    explicit            our blocks on patches, with QK-norm; sweeps/block_design.py compares more designs
    distilled           the same, distilled from the classifier that the project carries, or from --set teacher=FOLDER
    resnet-transformer  convolutions with residual blocks + our blocks
    resnet-trunk        its control: the convolutions alone, pooled
    resnet-deeper       and with a third stage of convolutions where the blocks were
    teacher             ResNet-18 in its CIFAR form, the teacher of `distilled`; not run unless it is named

    python sweeps/architecture.py --budget 1e14
    python sweeps/architecture.py --budget 1e15 --vary row=teacher --name teacher      # a teacher of your own,
    python sweeps/architecture.py --budget 1e14 --set teacher=results/architecture/teacher/best    # and its student
    python sweeps/architecture.py --budget 1e14 --vary row=cnn,cnn-encoder --seeds 3   # some rows only
    python sweeps/architecture.py --dataset shapes --smoke
    python sweeps/architecture.py --resume latest

The budget is the student's: the teacher's FLOPs stand in a column of their own, unless --set count_teacher=true.
"""

from collections.abc import Sequence
from typing import Any

from core.carried import CARRIED
from sweeps.answer import comparison, ranking
from sweeps.question import Sweep
from sweeps.results import Level
from sweeps.runner import run_and_exit
from sweeps.space import Choice

_VIT: dict[str, Any] = {
    "model": "vit",
    "patch_size": 4,
    "embed_dim": 128,
    "depth": 6,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "pooling": "mean",
    "layer_scale": None,
    "zero_init_residual": True,
    "optimizer": "muon",
    "learning_rate": 2e-3,
    "muon_learning_rate": 0.02,
    "momentum": 0.95,
}
_TRUNK: dict[str, Any] = {
    "model": "hybrid",
    "trunk_stages": 2,
    "embed_dim": 128,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "pooling": "mean",
    "optimizer": "muon",
    "learning_rate": 2e-3,
    "muon_learning_rate": 0.05,
    "momentum": 0.9,
    "flip": "alternating",
    "label_smoothing": 0.1,
    "layer_scale": None,
}
_CNN = {**_TRUNK, "trunk": "cnn", "trunk_width": 32}
_RESNET = {**_TRUNK, "trunk": "residual_cnn", "trunk_width": 64}
_EXPLICIT = {**_VIT, "qk_norm": True, "flip": "alternating"}

ROWS: dict[str, dict[str, Any]] = {
    "vit": _VIT,
    "vit-regularised": {**_VIT, "flip": "alternating", "cutmix_alpha": 0.5, "drop_path_rate": 0.05},
    "cnn-encoder": {**_CNN, "blocks": "encoder", "depth": 3, "zero_init_residual": True},
    "cnn": {**_CNN, "blocks": "none"},
    "cnn-deeper": {**_CNN, "blocks": "none", "trunk_stages": 3},
    "explicit": _EXPLICIT,
    "distilled": {**_EXPLICIT, "teacher": CARRIED, "temperature": 4.0, "distill_weight": 0.9},
    "resnet-transformer": {**_RESNET, "blocks": "explicit", "depth": 3, "zero_init_residual": True},
    "resnet-trunk": {**_RESNET, "blocks": "none"},
    "resnet-deeper": {**_RESNET, "blocks": "none", "trunk_stages": 3},
    "teacher": {
        "model": "resnet",
        "width": 64,
        "optimizer": "muon",
        "learning_rate": 2e-3,
        "muon_learning_rate": 0.05,
        "momentum": 0.9,
        "flip": "alternating",
        "label_smoothing": 0.1,
        "batch_size": 256,
    },
}

# Where a range was reported, its upper end.
PROTOTYPE = {
    "vit": 0.80,
    "vit-regularised": 0.83,
    "cnn-encoder": 0.82,
    "explicit": 0.84,
    "distilled": 0.86,
    "resnet-transformer": 0.87,
}

CONTROLS = (
    ("cnn-encoder", "cnn"),
    ("cnn-encoder", "cnn-deeper"),
    ("resnet-transformer", "resnet-trunk"),
    ("resnet-transformer", "resnet-deeper"),
    ("distilled", "explicit"),
)


def answer(levels: Sequence[Level]) -> str:
    """The winner, what each hybrid has over its trunk alone, and the distilled ViT over the one without a teacher."""
    shares = [comparison(levels, row, control) for row, control in CONTROLS]
    return " ".join([ranking(levels, "row"), *(share for share in shares if share)])


SWEEP = Sweep(
    name="architecture",
    question="What does each rung of the ladder buy?",
    description=__doc__,
    factor="row",
    grid={"row": Choice(tuple(row for row in ROWS if row != "teacher"))},
    bundles=ROWS,
    reference="vit",
    prototype=PROTOTYPE,
    base={"batch_size": 256, "weight_decay": 0.05, "target_accuracy": 0.9},
    budget=1e14,
    answer=answer,
)

if __name__ == "__main__":
    run_and_exit(SWEEP)
