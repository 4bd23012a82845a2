"""The Serve application: which deployments there are, and how much each may take on."""

from ray.serve import Application

from serve.ingress import Ingress
from serve.settings import Settings, StartError

# Requests that one ingress keeps waiting for the classifier, in batches; beyond them it answers 503.
_QUEUED_BATCHES = 8
# More than run and wait at the classifier together, so that its queue, whose refusal is in our form, fills first; what
# this limit holds back waits in Serve's proxy.
_INGRESS_ONGOING_REQUESTS = 1000


def build(settings: Settings) -> Application:
    """Check what the service needs, then describe it to Serve; nothing is started here.

    Raises:
        StartError: the classifier's folder is not a checkpoint, or of a model that does not take RGB pictures.
    """
    # Here, not above: they import PyTorch, and a replica of the ingress, which imports this module, needs none.
    from core.checkpoint import CheckpointError, load
    from core.runtime import resolve_device
    from serve.classifier import Classifier

    # A replica loads it again on its own machine. Loaded here first, a bad folder ends the start with one sentence;
    # were it found by a replica, Serve would try again and again.
    try:
        checkpoint = load(settings.classifier)
    except CheckpointError as error:
        raise StartError(f"classifier: {error}") from error
    if checkpoint.model_config.in_channels != 3:
        channels = checkpoint.model_config.in_channels
        raise StartError(f"classifier: the model in {settings.classifier} takes {channels} channels, pictures are RGB")
    if settings.device == "auto":
        settings = settings.model_copy(update={"device": resolve_device("auto").type})

    classifier = Classifier.options(
        num_replicas=settings.replicas,
        # One batch runs while the next one gathers.
        max_ongoing_requests=2 * settings.max_batch_size,
        max_queued_requests=_QUEUED_BATCHES * settings.max_batch_size,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(settings.device == "cuda")},
    ).bind(settings)
    return Ingress.options(
        max_ongoing_requests=_INGRESS_ONGOING_REQUESTS,
        # Whole CPUs are for models: one core must be enough to start.
        ray_actor_options={"num_cpus": 0},
    ).bind(settings, checkpoint.model_config.image_size, classifier)
