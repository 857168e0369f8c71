"""NLLB: the second half of the cascade, from transcripts to translations."""

from __future__ import annotations

from speechllm.baselines.base import MAX_NEW_TOKENS, PretrainedSystem
from speechllm.baselines.language_codes import flores_code
from speechllm.utils.errors import UserError


class Nllb(PretrainedSystem):
    """Translation of text between any two of NLLB-200's languages."""

    hears = False
    architecture = "M2M100ForConditionalGeneration"
    model_types = ("m2m_100",)

    def __init__(self, *arguments, **options):
        from transformers import AutoTokenizer

        super().__init__(*arguments, **options)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)

    def check(self, task: str, source: str, target: str) -> None:
        """Refuse languages that the checkpoint has no token for."""
        for language in (source, target):
            self.language_token(language)

    def language_token(self, language: str) -> int:
        """Id of the token that names a language."""
        code = flores_code(language)
        token = self.tokenizer.convert_tokens_to_ids(code)
        if token is None or token == self.tokenizer.unk_token_id:
            raise UserError(f"{self.name} does not know {language!r} ({code})")
        return token

    def answer(
        self, inputs: list[str], task: str, source: str, target: str
    ) -> list[dict]:
        """Translate transcripts; what an ``asr`` example wants is there already."""
        if task == "asr":
            return [{"text": text, "tokens": text.split()} for text in inputs]
        answers = self.translate(inputs, source, target)
        if task == "asr_st":
            for answer, text in zip(answers, inputs):
                answer["transcript"] = text
        return answers

    def translate(self, texts: list[str], source: str, target: str) -> list[dict]:
        """Translate sentences; of an empty one there is nothing to translate."""
        import torch

        answers = [{"text": "", "tokens": []} for _ in texts]
        spoken = [i for i, text in enumerate(texts) if text.strip()]
        if not spoken:
            return answers
        self.tokenizer.src_lang = flores_code(source)
        batch = self.tokenizer(
            [texts[i] for i in spoken], return_tensors="pt", padding=True
        ).to(self.device)
        with torch.inference_mode():
            sequences = self.model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                forced_bos_token_id=self.language_token(target),
                num_beams=self.beam_size,
                max_new_tokens=MAX_NEW_TOKENS,
            )
        for index, tokens in zip(spoken, sequences):
            answers[index] = spelt(self.tokenizer, tokens)
        return answers


def spelt(tokenizer, tokens) -> dict:
    """Text and tokens of a generated sequence (tokens,), special ones left out."""
    special = set(tokenizer.all_special_ids)
    kept = [t for t in tokens.tolist() if t not in special]
    text = tokenizer.decode(kept, skip_special_tokens=True)
    return {
        "text": " ".join(text.split()),
        "tokens": tokenizer.convert_ids_to_tokens(kept),
    }
