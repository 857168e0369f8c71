"""The systems that a speech LLM is measured against, on the same example dirs.

================= ============================================================
``whisper``       Whisper's own decoder: recognition, translation into English
``seamless``      SeamlessM4T v2: recognition and translation, end to end
``nllb``          NLLB on transcripts that another system wrote: a cascade
``llm``           our LLM as a text translator on such transcripts: a cascade of
                  our own parts
================= ============================================================

:func:`speechllm.baselines.runner.run_baseline` writes a decode dir as
``speechllm.inference.decode_examples`` does, so that scoring and reports know no difference. An
``asr_st`` example gets both texts: ``text`` is the translation and
``text.transcript`` the transcript.
"""
