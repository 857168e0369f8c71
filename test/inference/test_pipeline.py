"""transformers' pipeline with exported models, and with its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from transformers import pipeline
from transformers.pipelines.automatic_speech_recognition import (
    AutomaticSpeechRecognitionPipeline,
)

from speechllm import SpeechToText, load_audio
from speechllm.audio.io import resample
from speechllm.inference.pipeline import SpeechPipeline
from speechllm.utils.errors import UserError

TASK = "automatic-speech-recognition"
SHORT = {"tokens_per_second": 0.0, "extra_tokens": 6.0}


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    """Folder of the tiny model with the ``config.json`` that stage 10 writes."""
    folder = tmp_path_factory.mktemp("pipeline") / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "speechllm"}))
    return folder


def test_results_are_those_of_speech_to_text(exported, speech_file):
    wave = load_audio(speech_file)
    waves = [wave, wave[:20000], wave[8000:]]
    model = SpeechToText.from_pretrained(exported)
    options = {"language": "en", "beam_size": 2, **SHORT}
    expected = model.transcribe(waves, word_times=True, **options)
    recognizer = pipeline(TASK, model=str(exported), device="cpu")
    assert isinstance(recognizer, SpeechPipeline)

    single = recognizer(str(speech_file), generate_kwargs=options)
    assert single == {"text": expected[0].text}
    words = {"return_timestamps": "word", "generate_kwargs": options}
    for size in (1, 2):
        found = recognizer(waves, batch_size=size, **words)
        assert [output["text"] for output in found] == [r.text for r in expected]
        for output, result in zip(found, expected, strict=True):
            assert output["chunks"] == [
                {"text": word.text, "timestamp": (word.start, word.end)}
                for word in result.words
            ]
    assert [*recognizer((wave for wave in waves), **words)] == found

    # options of pipeline() hold for each call; other rates, channels and keys
    recognizer = pipeline(TASK, exported, device="cpu", generate_kwargs=options)
    assert recognizer(np.stack([wave, wave])) == single
    assert recognizer({"raw": wave, "sampling_rate": 16000}) == single
    slow = resample(wave, 16000, 8000)
    (heard,) = model.transcribe([resample(slow, 8000, 16000)], **options)
    given = {"array": slow, "sampling_rate": 8000, "path": "a.wav"}
    assert recognizer([given]) == [{"text": heard.text}]
    assert recognizer(given) == {"text": heard.text}  # it is not changed


def test_bad_calls_are_refused_in_one_line(exported, tmp_path):
    recognizer = pipeline(TASK, str(exported), device="cpu")
    wave = np.zeros(1600, np.float32)
    for given, options, message in (
        ({"array": wave}, {}, "needs the samples as 'raw' or 'array'"),
        (wave, {"return_timestamps": "char"}, "has times of words, 'word'"),
        (wave, {"beam": 2}, "unknown option 'beam'"),
        (wave, {"generate_kwargs": {"task": "transcribe"}}, "no prompt for task"),
        (str(tmp_path / "none.wav"), {}, r"none\.wav"),
    ):
        with pytest.raises(UserError, match=message):
            recognizer(given, **options)
    (tmp_path / "config.json").write_text('{"model_type": "speechllm"}')
    with pytest.raises(UserError, match="no model"):
        pipeline(TASK, str(tmp_path), device="cpu")


def test_models_of_transformers_have_its_own_pipeline(whisper_base, tmp_path):
    from transformers import AutoTokenizer, WhisperForConditionalGeneration

    whisper = pipeline(TASK, str(whisper_base), device="cpu")
    assert type(whisper) is AutomaticSpeechRecognitionPipeline
    assert isinstance(whisper.model, WhisperForConditionalGeneration)
    assert type(whisper.tokenizer) is type(AutoTokenizer.from_pretrained(whisper_base))
    assert whisper.feature_extractor.sampling_rate == 16000

    for path in whisper_base.iterdir():
        if "processor" not in path.name:
            (tmp_path / path.name).symlink_to(path)
    errors = []
    for kind in (None, AutomaticSpeechRecognitionPipeline):
        with pytest.raises(OSError) as caught:
            pipeline(TASK, str(tmp_path), device="cpu", pipeline_class=kind)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]  # without a feature extractor


@pytest.mark.parametrize(
    "imports",
    [
        "import speechllm; assert not {'torch', 'transformers'} & sys.modules.keys(); "
        "from transformers import pipeline",
        "from transformers import pipeline; import speechllm",
        "import speechllm.inference.pipeline; from transformers import pipeline",
    ],
)
def test_the_order_of_imports_does_not_matter(imports):
    program = (
        f"import sys; {imports}; from transformers.pipelines import PIPELINE_REGISTRY; "
        f"print(PIPELINE_REGISTRY.check_task({TASK!r})[1]['impl'].__name__)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["SpeechPipeline"]
