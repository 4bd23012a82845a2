"""What are explicit blocks for?

Blocks that are written out can be changed; PyTorch's `nn.TransformerEncoder` cannot. Each level changes one thing of
the reference: norm after the sum, the initial gain of the residual branches (`gamma`), normalised queries and keys, a
narrower or wider MLP, residual branches that start at zero, what the head reads. The last three put both kinds of
blocks, and none, on the same convolutional trunk.

    python sweeps/block_design.py --budget 3e13 --seeds 3
    python sweeps/block_design.py --vary design=reference,post-norm,qk-norm
    python sweeps/block_design.py --search optuna --scheduler asha --num-samples 40    # all of them together
    python sweeps/block_design.py --dataset shapes --smoke
    python sweeps/block_design.py --resume latest
"""

from collections.abc import Sequence
from typing import Any

from sweeps.answer import comparison, ranking
from sweeps.question import Sweep
from sweeps.results import Level
from sweeps.runner import run_and_exit
from sweeps.space import Choice, Uniform

_REFERENCE: dict[str, Any] = {
    "model": "vit",
    "patch_size": 4,
    "embed_dim": 128,
    "depth": 6,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "norm": "pre",
    "layer_scale": None,
    "qk_norm": False,
    "zero_init_residual": False,
    "pooling": "mean",
}
_TRUNK = {"model": "hybrid", "trunk": "cnn", "trunk_width": 32, "depth": 3, "layer_scale": None, "pooling": "mean"}

DESIGNS: dict[str, dict[str, Any]] = {
    "reference": _REFERENCE,
    "post-norm": {**_REFERENCE, "norm": "post"},
    "gamma-1e-4": {**_REFERENCE, "layer_scale": 1e-4},
    "gamma-1e-2": {**_REFERENCE, "layer_scale": 1e-2},
    "gamma-0.1": {**_REFERENCE, "layer_scale": 0.1},
    "gamma-1": {**_REFERENCE, "layer_scale": 1.0},
    "qk-norm": {**_REFERENCE, "qk_norm": True},
    "mlp-1x": {**_REFERENCE, "mlp_ratio": 1.0},
    "mlp-4x": {**_REFERENCE, "mlp_ratio": 4.0},
    "zero-init": {**_REFERENCE, "zero_init_residual": True},
    "class-token": {**_REFERENCE, "pooling": "cls"},
    "cnn+encoder": {**_TRUNK, "blocks": "encoder"},
    "cnn+explicit": {**_TRUNK, "blocks": "explicit", "qk_norm": True, "zero_init_residual": True},
    "cnn-alone": {**_TRUNK, "blocks": "none"},
}


def answer(levels: Sequence[Level]) -> str:
    """The best design on patches alone, and our blocks beside PyTorch's on the same trunk."""
    blocks = [comparison(levels, "cnn+explicit", "cnn+encoder"), comparison(levels, "cnn+explicit", "cnn-alone")]
    patches = [level for level in levels if not level.value.startswith("cnn")]
    sentences = [ranking(levels, "patch-only design", among=patches)] if patches else []
    return " ".join([*sentences, *(sentence for sentence in blocks if sentence)])


SWEEP = Sweep(
    name="block_design",
    question="What are explicit blocks for?",
    description=__doc__,
    factor="design",
    grid={"design": Choice(tuple(DESIGNS))},
    bundles=DESIGNS,
    search={
        "norm": Choice(("pre", "post")),
        "layer_scale": Uniform(1e-4, 1.0, log=True),
        "qk_norm": Choice((False, True)),
        "mlp_ratio": Choice((1.0, 2.0, 4.0)),
        "zero_init_residual": Choice((False, True)),
        "pooling": Choice(("cls", "mean")),
        "learning_rate": Uniform(5e-4, 5e-3, log=True),
    },
    search_levels=("reference",),
    reference="reference",
    base={"batch_size": 256, "learning_rate": 2e-3},
    budget=3e13,
    answer=answer,
)

if __name__ == "__main__":
    run_and_exit(SWEEP)
