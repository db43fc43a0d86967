"""Sizes of models from their configs, and roofline estimates from sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegaeon.latency.estimate.architecture import Architecture
from aegaeon.latency.estimate.device_spec import DEVICES, device_spec
from aegaeon.latency.estimate.errors import LatencyError, UnknownNameError
from aegaeon.latency.estimate.model_facts import CatalogueModel
from aegaeon.latency.estimate.roofline import PEAK, Slowdown, estimate, fastest
from aegaeon.latency.fit.measurement import Measurement
from aegaeon.latency.fit.slowdown import MeasuredSet, calibrate, estimate_error, leave_one_out

ROOT = Path(__file__).parents[2]
FACTS = {facts.model: facts for facts in CatalogueModel.read_all(ROOT / "profiles" / "models")}
LLAMA = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "torch_dtype": "float16",
}


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS)
def test_parameters_counted_from_the_config_are_the_published_ones(facts: CatalogueModel) -> None:
    assert facts.published_parameters is not None
    # LLaVA's vision tower (0.3 billion) is no part of its language model.
    tolerance = 0.03 if facts.model.startswith("llava") else 0.003
    assert facts.architecture.parameters == pytest.approx(facts.published_parameters, rel=tolerance)


def test_kv_and_weight_bytes_of_known_models() -> None:
    assert FACTS["qwen2.5-7b"].architecture.kv_shape.token_bytes == 28 * 2 * 4 * 128 * 2
    assert FACTS["llama-2-13b"].architecture.kv_shape.token_bytes == 40 * 2 * 40 * 128 * 2
    assert FACTS["yi-1.5-9b"].architecture.weight_bytes / 2**30 == pytest.approx(16.5, abs=0.1)
    assert FACTS["llama-2-13b"].architecture.weight_bytes / 2**30 == pytest.approx(24.3, abs=0.1)


def test_a_mixture_of_experts_keeps_more_than_it_multiplies() -> None:
    moe = FACTS["qwen1.5-moe-a2.7b"].architecture
    assert moe.layer_parameters_per_token + 2 * moe.embedding_parameters == pytest.approx(2.7e9, rel=0.02)
    assert moe.parameters > 5 * moe.layer_parameters_per_token


def test_defaults_of_a_config() -> None:
    model = Architecture.of(LLAMA)
    assert (model.kv_heads, model.head_size, model.tied_embeddings, model.element_bytes) == (32, 128, False, 2)
    tied = Architecture.of({**LLAMA, "tie_word_embeddings": True})
    assert model.parameters - tied.parameters == 32000 * 4096
    assert Architecture.of({"model_type": "llava", "text_config": LLAMA}) == model
    assert Architecture.of({**LLAMA, "head_dim": 256}).head_size == 256


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab_size": None}, "does not say 'vocab_size'"),
        ({"num_hidden_layers": "many"}, "'num_hidden_layers' must be a whole number"),
        ({"num_hidden_layers": True}, "must be a whole number"),
        ({"hidden_size": -1}, "must be positive"),
        ({"num_attention_heads": 0}, "must be positive"),
        ({"torch_dtype": "int3"}, "'int3' are unknown; there are: float32"),
    ],
)
def test_configs_that_describe_no_model(change: dict[str, object], said: str) -> None:
    with pytest.raises(LatencyError, match=said):
        Architecture.of({**LLAMA, **change})


def test_devices_by_name() -> None:
    assert device_spec("H100") is DEVICES["h100"]
    assert {"h100", "h800", "h20", "a100", "a10", "h200"} == set(DEVICES)
    with pytest.raises(UnknownNameError, match="no device is called 'h10'; there are: h100"):
        device_spec("h10")


def test_peak_rates_are_a_bound_and_follow_the_sizes() -> None:
    model, device = Architecture.of(LLAMA), device_spec("h100")
    peak = fastest(model, device)
    assert peak.d0_s == pytest.approx(model.step_parameters * 2 / 3.35e12)
    assert peak.d1_s == pytest.approx(524288 / 3.35e12)
    assert peak.prefill_s([4096]) >= 2 * model.layer_parameters_per_token * 4096 / 989e12
    real = estimate(model, device)
    assert real.decode_step_s(8000, 8) > peak.decode_step_s(8000, 8)
    assert real.prefill_s([1000]) > peak.prefill_s([1000])


def test_devices_that_share_a_model_are_faster_but_pay_for_joining() -> None:
    model, device = FACTS["qwen2.5-72b"].architecture, device_spec("h100")
    one, four = estimate(model, device), estimate(model, device, tp=4)
    assert one.decode_step_s(1000, 1) / 4 < four.decode_step_s(1000, 1) < one.decode_step_s(1000, 1)
    assert one.prefill_s([4000]) / 4 < four.prefill_s([4000]) < one.prefill_s([4000])
    slower_links = estimate(model, device_spec("h800"), tp=4)
    assert slower_links.p1_s > four.p1_s


@pytest.mark.parametrize("tp", [0, 3, -2])
def test_heads_that_cannot_be_shared_out(tp: int) -> None:
    with pytest.raises(LatencyError, match=f"32 attention heads cannot be shared by {tp} devices"):
        estimate(Architecture.of(LLAMA), device_spec("h100"), tp)


# -- calibration

TRUE = Slowdown(0.8, 1.5, 1e-4, 8e-4, 1.2, 1.6, 1.4, 1.2e-4, 7e-4, 8e-5)


def made_set(name: str, device: str, slowdown: Slowdown = TRUE) -> MeasuredSet:
    """What a device with this slowdown would measure."""
    model, spec = FACTS[name].architecture, device_spec(device)
    profile = estimate(model, spec, slowdown=slowdown)
    points = tuple(
        Measurement(length, batch, profile.prefill_s([length] * batch), profile.decode_step_s(length * batch, batch))
        for length in (16, 128, 1024)
        for batch in (1, 4, 16)
    )
    return MeasuredSet(name, model, spec, tuple(p.prefill for p in points), tuple(p.decode for p in points))


def test_calibration_finds_the_slowdown_that_made_the_measurements() -> None:
    sets = [made_set(name, device) for name in FACTS for device in ("a100", "h100", "a10")]
    found = calibrate(sets)
    for name in Slowdown.__dataclass_fields__:
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)
    error = leave_one_out(sets, sets[0])
    assert error.prefill == pytest.approx(0, abs=1e-9)
    assert error.decode == pytest.approx(0, abs=1e-9)


def test_a_set_that_was_left_out_does_not_help_its_own_estimate() -> None:
    usual = [made_set(name, device) for name in FACTS for device in ("a100", "h100")]
    odd = made_set("qwen2.5-7b", "h20", Slowdown(1.0, 3.0, 1e-4, 8e-4, 3.0, 1.6, 1.4, 1.2e-4, 7e-4, 8e-5))
    sets = [*usual, odd]
    left_out = leave_one_out(sets, odd)
    with_it = estimate_error(odd, calibrate(sets))
    assert left_out.decode > with_it.decode > 0.05
    assert leave_one_out(sets, odd, whole_device=True) == left_out
    assert estimate_error(odd, PEAK).decode > left_out.decode
