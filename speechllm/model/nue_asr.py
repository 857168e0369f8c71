"""Import path of release 0.1 for :mod:`speechllm.models.nue_asr`.

Importing it registers the classes with transformers, as before.
"""

from speechllm.models.nue_asr import NueASRConfig, NueASRModel, NueASRProcessor

__all__ = ["NueASRConfig", "NueASRModel", "NueASRProcessor"]
