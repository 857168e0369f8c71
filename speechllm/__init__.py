"""Speech recognition and translation with pretrained speech encoders and LLMs."""

__version__ = "0.2.0"

__all__ = ["SpeechToText", "__version__"]


def __getattr__(name: str):
    if name == "SpeechToText":  # imported on first use: torch takes seconds
        from speechllm.inference.speech_to_text import SpeechToText

        return SpeechToText
    raise AttributeError(f"module 'speechllm' has no attribute {name!r}")
