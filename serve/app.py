"""The Serve application: which deployments there are, and how much each may take on."""

import os
from typing import Any

from ray.serve import Application

from serve.gate import read_keys
from serve.ingress import Ingress
from serve.settings import CARRIED_CLASSIFIER, Settings, StartError

# More than the ingress lets in, so that the refusal is its own, in our form; what this limit holds back waits in
# Serve's proxy.
_INGRESS_ONGOING_REQUESTS = 1000
# Models that take milliseconds: reserved so that a whole application fits on one core.
_SMALL_CPUS = 0.25
_MAX_CPUS = 8
API_KEYS = "PATCHWORK_API_KEYS"


def build(settings: Settings) -> Application:
    """Check what the service needs, then describe it to Serve; nothing is started here.

    Raises:
        StartError: something that the service needs is missing, or not what it should be; the sentence says what.
    """
    # Here, not above: they import PyTorch, and a replica of the ingress, which imports this module, needs none.
    from core.runtime import resolve_device
    from serve.classifier import Classifier
    from serve.segmenter import Segmenter

    keys = read_keys(os.environ.get(API_KEYS))
    try:
        device = resolve_device(settings.device).type
    except ValueError as error:
        raise StartError(f"device: {error}") from error
    settings = settings.model_copy(update={"device": device})
    image_size = _check_classifier(settings)
    card = _check_segmenter(settings)

    cpus = settings.cpus_per_replica or min(os.cpu_count() or 1, _MAX_CPUS)
    classifier = Classifier.options(**_resources(settings, _SMALL_CPUS)).bind(settings)
    segmenter = Segmenter.options(**_resources(settings, cpus - _SMALL_CPUS)).bind(settings, cpus)
    return Ingress.options(
        max_ongoing_requests=_INGRESS_ONGOING_REQUESTS,
        # Whole CPUs are for models: one core must be enough to start.
        ray_actor_options={"num_cpus": 0},
    ).bind(settings, image_size, classifier, segmenter, card, keys)


def _resources(settings: Settings, num_cpus: float) -> dict[str, Any]:
    """Options of a deployment with a model."""
    return {
        "num_replicas": settings.replicas,
        # Admission is the ingress's affair: what was let in goes to a replica at once, to find company there. At the
        # limit Serve's router would try again only now and then.
        "max_ongoing_requests": 2 * settings.max_queued,
        "ray_actor_options": {"num_cpus": num_cpus, "num_gpus": int(settings.device == "cuda")},
    }


def _check_classifier(settings: Settings) -> int:
    """The side of the pictures that it takes. A replica loads it again on its own machine.

    Loaded here first, a bad folder ends the start with one sentence; were it found by a replica, Serve would try again
    and again.
    """
    from core.checkpoint import CheckpointError, load

    try:
        checkpoint = load(settings.classifier)
    except CheckpointError as error:
        if settings.classifier == CARRIED_CLASSIFIER and not CARRIED_CLASSIFIER.exists():
            raise StartError(
                f"classifier: this copy of the project lacks the weights that it should carry, {CARRIED_CLASSIFIER}; "
                "name a checkpoint folder, such as classifier=results/patch_size/latest/best"
            ) from error
        raise StartError(f"classifier: {error}") from error
    if checkpoint.model_config.in_channels != 3:
        channels = checkpoint.model_config.in_channels
        raise StartError(f"classifier: the model in {settings.classifier} takes {channels} channels, pictures are RGB")
    return checkpoint.model_config.image_size


def _check_segmenter(settings: Settings) -> Any:
    """The card of the models, which are loaded and left."""
    from serve.models import load_calibration, load_clipseg, load_sam2, segmenter_card

    try:
        load_calibration(settings)
        return segmenter_card(settings, load_clipseg(settings), load_sam2(settings))
    except ValueError as error:
        raise StartError(f"segmenter: {error}") from error
