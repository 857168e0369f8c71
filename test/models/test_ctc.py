"""CTC branch against ESPnet's."""

from __future__ import annotations

import pytest
import torch
from espnet2.asr.ctc import CTC as ESPnetCTC
from espnet2.utils.get_default_kwargs import get_default_kwargs

from speechllm.models.ctc import CTC, ctc_options

LABELS, DIM = 7, 5


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Return features and labels; the last utterance has too few frames."""
    generator = torch.Generator().manual_seed(0)
    return {
        "features": torch.randn(3, 9, DIM, generator=generator),
        "frames": torch.tensor([9, 6, 2]),
        "labels": torch.tensor([[1, 1, 2, -1], [3, 4, 5, 6], [1, 2, 3, -1]]),
        "lengths": torch.tensor([3, 4, 3]),
    }


@pytest.mark.parametrize("zero_infinity", [True, False])
def test_loss_and_gradients_equal_espnet(batch, zero_infinity):
    espnet = ESPnetCTC(LABELS, DIM, zero_infinity=zero_infinity)
    ctc = CTC(LABELS, DIM, zero_infinity=zero_infinity)
    ctc.load_state_dict(espnet.state_dict())
    if not zero_infinity:
        batch = {name: tensor[:2] for name, tensor in batch.items()}
    features, frames = batch["features"], batch["frames"]
    labels, lengths = batch["labels"], batch["lengths"]
    loss = ctc.loss(ctc(features), frames, labels, lengths)
    expected = espnet(features, frames, labels, lengths) * len(features)
    torch.testing.assert_close(loss, expected)
    assert 0 < loss < torch.inf
    for one, other in zip(
        torch.autograd.grad(loss, ctc.parameters()),
        torch.autograd.grad(expected, espnet.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_logits_and_names_equal_espnet(batch):
    torch.manual_seed(1)
    espnet = ESPnetCTC(LABELS, DIM)
    torch.manual_seed(1)
    ctc = CTC(LABELS, DIM)
    assert list(ctc.state_dict()) == list(espnet.state_dict())
    expected = espnet.log_softmax(batch["features"])
    torch.testing.assert_close(ctc(batch["features"]).log_softmax(2), expected)


def test_loss_of_half_precision_logits_is_in_float32(batch):
    ctc = CTC(LABELS, DIM)
    rest = (batch["frames"], batch["labels"], batch["lengths"])
    logits = ctc(batch["features"]).bfloat16()
    loss = ctc.loss(logits, *rest)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ctc.loss(logits.float(), *rest))


def test_options_of_espnet_are_accepted_with_their_defaults():
    """Configurations of trainings until release 0.2 name them."""
    assert ctc_options(get_default_kwargs(ESPnetCTC)) == {"zero_infinity": True}
    assert ctc_options(None) == {}
    assert ctc_options({"zero_infinity": False}) == {"zero_infinity": False}
    for name, value in (("ctc_type", "gtnctc"), ("dropout_rate", 0.1)):
        with pytest.raises(ValueError, match=f"ctc_conf: {name} {value!r}: only"):
            ctc_options({name: value})
    with pytest.raises(ValueError, match="unknown option 'zero'; zero_infinity"):
        ctc_options({"zero": True})
