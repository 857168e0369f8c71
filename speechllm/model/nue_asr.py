"""Import path of release 0.1 for :mod:`speechllm.models.nue_asr`."""

from speechllm.models.nue_asr import (  # noqa: F401
    NueASRConfig,
    NueASRModel,
    NueASRProcessor,
)
