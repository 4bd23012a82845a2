"""The service's HTTP application and its classifier in one process, without Ray: the least that the service can take.

    uvicorn benchmarks.bare_app:app --port 8001

`benchmarks.serving_overhead` holds the service against it.
"""

from serve.classifier import LocalClassifier
from serve.ingress import create_app
from serve.ports import SegmentAnswer, SegmentAsk, SegmenterCard
from serve.settings import Settings


class _NoSegmenter:
    async def ready(self) -> None:
        pass

    async def segment(self, ask: SegmentAsk) -> SegmentAnswer:
        raise NotImplementedError


_NONE = SegmenterCard(preset="demo", clipseg="none", sam2="none", device="cpu", low_res_size=1)
_settings = Settings()
_classifier = LocalClassifier(_settings)
app = create_app(_settings, _classifier.image_size, _classifier, _NoSegmenter(), _NONE)
