"""Which models must leave a device for another one."""

from __future__ import annotations

from aegaeon.scheduler.facts import model_facts
from aegaeon.scheduler.residency import Residency
from tests.worlds.toy_world import make_instance, make_models


def residency(max_models: int, weight_bytes: int = 1000) -> Residency:
    spec = make_instance("i", weight_bytes=weight_bytes, max_resident_models=max_models)
    return Residency(spec, model_facts(make_models(6, weight_bytes=100)))


def test_the_least_recently_used_model_goes_first() -> None:
    models = residency(max_models=2)
    assert models.admit("m0") == ()
    assert models.admit("m1") == ()
    assert models.admit("m0") == ()  # used again
    assert models.admit("m2") == ("m1",)
    assert "m0" in models
    assert "m1" not in models


def test_as_many_go_as_the_bytes_ask_for() -> None:
    facts = model_facts([*make_models(3, weight_bytes=100)])
    big = make_models(4, weight_bytes=250)[3]
    models = Residency(make_instance("i", weight_bytes=300, max_resident_models=9), facts | model_facts([big]))
    for name in ("m0", "m1", "m2"):
        assert models.admit(name) == ()
    assert models.admit("m3") == ("m0", "m1", "m2")


def test_pinned_models_stay_and_nothing_changes_if_there_is_no_room_beside_them() -> None:
    models = residency(max_models=2)
    models.admit("m0")
    models.admit("m1")
    assert models.admit("m2", pinned=("m0",)) == ("m1",)
    assert models.admit("m3", pinned=("m0", "m2")) is None
    assert "m2" in models
    assert "m3" not in models


def test_a_discarded_model_leaves_its_room() -> None:
    models = residency(max_models=1)
    models.admit("m0")
    models.discard("m0")
    models.discard("never seen")
    assert models.admit("m1", pinned=("m0",)) == ()
