"""Pretrained speech encoders and large language models, trained as one model.

The public API: :class:`SpeechToText` transcribes and translates recordings,
:func:`transcribe_long` recordings of any length; both give :class:`Result` objects.
transformers' ``pipeline("automatic-speech-recognition")`` takes exported models, too.
"""

from speechllm.utils.import_hook import after_import

__version__ = "0.2.0"

__all__ = ["Result", "SpeechToText", "__version__", "load_audio", "transcribe_long"]

_HOMES = {
    "Result": "speechllm.decoding.result",
    "SpeechToText": "speechllm.inference.speech_to_text",
    "load_audio": "speechllm.audio.io",
    "transcribe_long": "speechllm.inference.long_form",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is used: importing torch takes seconds."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'speechllm' has no attribute {name!r}")


after_import("transformers.pipelines", "speechllm.inference.pipeline")
