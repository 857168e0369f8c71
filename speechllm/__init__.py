"""Pretrained speech encoders and large language models, trained as one model."""

__version__ = "0.2.0"

__all__ = ["SpeechToText", "__version__"]


def __getattr__(name: str):
    if name == "SpeechToText":  # imported when used: torch takes seconds
        from speechllm.inference.speech_to_text import SpeechToText

        return SpeechToText
    raise AttributeError(f"module 'speechllm' has no attribute {name!r}")
