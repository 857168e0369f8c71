"""Baseline systems that are decoded and scored on the same example dirs.

================= ============================================================
``whisper``       Whisper: recognition, and translation into English
``seamless``      SeamlessM4T v2: end-to-end recognition and translation
``nllb``          NLLB on the transcripts of another system (cascade)
``llm``           the speech model's LLM as a text translator on transcripts
                  (cascade of our own components)
================= ============================================================

:func:`speechllm.baselines.runner.run_baseline` writes a decode dir in the format of
``speechllm.inference.decode_examples``, so scoring and reports treat all systems alike.
For ``asr_st`` examples, ``text`` holds the translation and ``text.transcript`` the
transcript.
"""
