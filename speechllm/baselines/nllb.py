"""NLLB: text translation, the second stage of a cascade."""

from __future__ import annotations

from collections.abc import Sequence

from speechllm.baselines.base import (
    MAX_NEW_TOKENS,
    PretrainedSystem,
    TextTranslator,
    decode_tokens,
    language_token,
)
from speechllm.baselines.language_codes import flores_code
from speechllm.pretrained.model_folder import NO_CODE


class Nllb(TextTranslator, PretrainedSystem):
    """Text translation between any two languages of NLLB-200."""

    architecture = "M2M100ForConditionalGeneration"
    model_types = ("m2m_100",)

    def __init__(self, *arguments, **options):
        from transformers import AutoTokenizer

        super().__init__(*arguments, **options)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder, **NO_CODE)

    def check(self, task: str, source: str, target: str) -> None:
        """Raise UserError if the checkpoint has no token for one of the languages."""
        for language in (source, target):
            self.language_token(language)

    def language_token(self, language: str) -> int:
        """Return the id of the token that names a language."""
        code = flores_code(language)
        message = f"{self.name} does not support {language!r} ({code})"
        return language_token(self.tokenizer, code, message)

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[dict]:
        """Translate sentences; an empty one stays empty."""
        import torch

        outputs: list[dict] = [{"text": "", "tokens": []} for _ in texts]
        filled = [i for i, text in enumerate(texts) if text.strip()]
        if not filled:
            return outputs
        self.tokenizer.src_lang = flores_code(source)
        batch = self.tokenizer(
            [texts[i] for i in filled], return_tensors="pt", padding=True
        ).to(self.device)
        with torch.inference_mode():
            sequences = self.model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                forced_bos_token_id=self.language_token(target),
                num_beams=self.beam_size,
                max_new_tokens=MAX_NEW_TOKENS,
            )
        for index, token_ids in zip(filled, sequences):
            outputs[index] = decode_tokens(self.tokenizer, token_ids)
        return outputs
