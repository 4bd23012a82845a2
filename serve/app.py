"""The Serve application: which deployments there are, and how much each may take on."""

import os
from dataclasses import dataclass
from typing import Any

from ray.serve import Application

from core.carried import CARRIED_CLASSIFIER
from serve.gate import read_keys
from serve.ingress import Ingress
from serve.ports import SegmenterCard
from serve.run_command import end_well
from serve.settings import Settings, StartError
from serve.start_checks import check_machine, count_cpus, is_local_run

API_KEYS = "PATCHWORK_API_KEYS"
# An ingress replica's, beside what its two routes may have in hand; what this limit holds back waits in Serve's proxy,
# and is to be refused by the ingress, in our form.
_MORE_ONGOING_REQUESTS = 1000
# Shares of a core and of a GPU for what takes milliseconds: one core, or one GPU, is enough to start.
_SMALL_CPUS, _SMALL_GPUS = 0.25, 0.1
_MAX_CPUS = 8
# Large models on a CPU take their time.
_HEALTH_CHECK_TIMEOUT_S = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class _Models:
    """What was learnt by loading them. nbytes: of all weights."""

    image_size: int
    segmenter: SegmenterCard
    nbytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What each replica reserves. A replica of a segmentation model has `threads`, of which it reserves most.

    classifier_in_ingress: while there is one copy of each model on one machine, a call from process to process would
    take longer than the classifier does.
    """

    classifier_in_ingress: bool
    threads: int
    num_model_stages: int
    small_gpus: float
    stage_gpus: float

    @classmethod
    def of(cls, settings: Settings) -> "_Plan":
        stages = 2 if settings.stages == "apart" else 1
        cores = min(count_cpus(), _MAX_CPUS)
        on_gpu = settings.device == "cuda"
        return cls(
            classifier_in_ingress=settings.stages == "together" and (settings.max_replicas or settings.replicas) == 1,
            threads=settings.cpus_per_replica or max(1, cores // (stages * settings.replicas)),
            num_model_stages=stages,
            small_gpus=_SMALL_GPUS if on_gpu else 0,
            stage_gpus=(1 - _SMALL_GPUS) / stages if on_gpu else 0,
        )

    @property
    def stage_cpus(self) -> float:
        return self.threads - _SMALL_CPUS


def build(settings: Settings) -> Application:
    """Check what the service needs, then describe it to Serve; nothing is started here.

    Raises:
        StartError: something that the service needs is missing, or not what it should be; the sentence says what.
    """
    # Here and below, not above: they import PyTorch, and replicas of the ingress, which import this module, need none.
    from core.runtime import resolve_device
    from serve.classifier import Classifier

    keys = read_keys(os.environ.get(API_KEYS))
    # On a cluster this may be a machine without a GPU, while the replicas have theirs.
    if settings.device != "cuda" or is_local_run():
        try:
            device = resolve_device(settings.device).type
        except ValueError as error:
            raise StartError(f"device: {error}") from error
        settings = settings.model_copy(update={"device": device})
    plan = _Plan.of(settings)
    models = _load_once(settings)
    _check_machine(settings, plan, models)
    end_well(settings.request_timeout_s)

    for_classifier = {"num_cpus": _SMALL_CPUS, "num_gpus": plan.small_gpus}
    classifier = None
    if not plan.classifier_in_ingress:
        classifier = Classifier.options(**_resources(settings, **for_classifier)).bind(settings)
    segmenter = _segmenter(settings, plan, models.segmenter)
    return Ingress.options(
        max_ongoing_requests=2 * settings.max_in_hand + _MORE_ONGOING_REQUESTS,
        ray_actor_options={"num_cpus": 0} if classifier else for_classifier,
        graceful_shutdown_timeout_s=settings.request_timeout_s,
        health_check_timeout_s=_HEALTH_CHECK_TIMEOUT_S,
        **_logging(),
    ).bind(settings, models.image_size, classifier, segmenter, models.segmenter, keys)


def _segmenter(settings: Settings, plan: _Plan, card: SegmenterCard) -> Application:
    from serve.segmenter import Segmenter
    from serve.stages import ClipSegStage, Conductor, Sam2Stage

    options = _resources(settings, plan.stage_cpus, plan.stage_gpus)
    if settings.stages == "together":
        return Segmenter.options(**options).bind(settings, plan.threads)
    clipseg = ClipSegStage.options(name="ClipSeg", **options).bind(settings, plan.threads)
    sam2 = Sam2Stage.options(name="Sam2", **options).bind(settings, plan.threads)
    lead = Conductor.options(name="Segmenter", **_resources(settings, _SMALL_CPUS, 0))
    return lead.bind(settings, card.low_res_size, plan.threads, clipseg, sam2)


def _resources(settings: Settings, num_cpus: float, num_gpus: float) -> dict[str, Any]:
    """Options of a deployment that works on what the ingress let in."""
    options: dict[str, Any] = {
        # Admission is the ingress's affair: what was let in goes to a replica at once, to find company there. At the
        # limit Serve's router would try again only now and then.
        "max_ongoing_requests": 2 * settings.max_in_hand,
        **_logging(),
        "ray_actor_options": {"num_cpus": num_cpus, "num_gpus": num_gpus},
        # What a replica has in hand when it is to stop, it answers.
        "graceful_shutdown_timeout_s": settings.request_timeout_s,
        "health_check_timeout_s": _HEALTH_CHECK_TIMEOUT_S,
    }
    if settings.max_replicas is None:
        return options | {"num_replicas": settings.replicas}
    scaling = {
        "min_replicas": settings.replicas,
        "max_replicas": settings.max_replicas,
        # A full batch a replica; with more, the next one has to wait.
        "target_ongoing_requests": settings.max_batch_size,
    }
    return options | {"autoscaling_config": scaling}


def _logging() -> dict[str, Any]:
    """Each request is logged by the ingress, with its outcome: Serve's own lines from all deployments say no more.

    On a cluster this is the YAML file's affair, whose `logging_config` would not reach a deployment that has one.
    """
    return {"logging_config": {"enable_access_log": False}} if is_local_run() else {}


def _load_once(settings: Settings) -> _Models:
    """Load every model, and let it go again.

    A replica loads them again on its own machine. Loaded here first, a bad checkpoint ends the start with one sentence;
    were it found by a replica, Serve would try again and again.
    """
    from core.checkpoint import CheckpointError
    from core.image_classifier import ImageClassifier
    from serve.models import load_calibration, load_clipseg, load_sam2, segmenter_card

    try:
        classifier = ImageClassifier.from_folder(settings.classifier, "cpu")
    except CheckpointError as error:
        if settings.classifier == CARRIED_CLASSIFIER and not CARRIED_CLASSIFIER.exists():
            raise StartError(
                f"classifier: this copy of the project lacks the weights that it should carry, {CARRIED_CLASSIFIER}; "
                "name a checkpoint folder, such as classifier=results/patch_size/latest/best"
            ) from error
        raise StartError(f"classifier: {error}") from error
    # Here they are only looked at: the GPU is the replicas'.
    on_cpu = settings.model_copy(update={"device": "cpu"})
    try:
        load_calibration(settings)
        clipseg, sam2 = load_clipseg(on_cpu), load_sam2(on_cpu)
    except ValueError as error:
        raise StartError(f"segmenter: {error}") from error
    weights = [*classifier.model.parameters(), *clipseg.model.parameters(), *sam2.model.parameters()]
    return _Models(
        image_size=classifier.image_size,
        segmenter=segmenter_card(settings, clipseg, sam2),
        nbytes=sum(tensor.nbytes for tensor in weights),
    )


def _check_machine(settings: Settings, plan: _Plan, models: _Models) -> None:
    leads = _SMALL_CPUS if settings.stages == "apart" else 0
    num_stages = plan.num_model_stages
    check_machine(
        num_cpus=settings.replicas * (num_stages * plan.stage_cpus + _SMALL_CPUS + leads),
        num_gpus=settings.replicas * (num_stages * plan.stage_gpus + plan.small_gpus),
        num_bytes=settings.replicas * (models.nbytes + num_stages * settings.cache_bytes),
        num_processes=1 + settings.replicas * (num_stages + (not plan.classifier_in_ingress) + bool(leads)),
    )
