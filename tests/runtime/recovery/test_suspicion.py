"""Who is suspected when instances die."""

from __future__ import annotations

from aegaeon.runtime.recovery.suspicion import ModelSuspicion, RequestSuspicion


def test_two_deaths_at_the_same_place_make_a_suspect_and_a_third_proves_it():
    request = RequestSuspicion()
    for suspected, proven in ((False, False), (True, False), (True, True)):
        request.note_death(5)
        assert (request.suspected, request.proven) == (suspected, proven)


def test_few_tokens_between_deaths_do_not_clear_and_eight_do():
    request = RequestSuspicion()
    for tokens in (5, 12):
        request.note_death(tokens)
    assert request.suspected
    request.note_progress(19)
    assert request.suspected
    request.note_progress(20)
    assert not request.suspected


def test_who_gets_on_between_deaths_is_never_suspected():
    request = RequestSuspicion()
    for tokens in range(0, 800, 8):
        request.note_death(tokens)
        assert not request.suspected


def test_a_long_prompt_that_comes_further_between_deaths_is_cleared_and_one_that_does_not_is_not():
    prompt, stuck = RequestSuspicion(), RequestSuspicion()
    for kv_tokens in (0, 512, 2048, 4096):
        prompt.note_death(0, kv_tokens)
        assert not prompt.suspected
    for kv_tokens in (512, 0, 512):  # made again each time, and no further
        stuck.note_progress(0, kv_tokens)
        stuck.note_death(0, kv_tokens)
    stuck.note_progress(0, 512)
    assert stuck.suspected


def test_a_model_is_condemned_by_three_requests_that_died_alone_and_not_by_one():
    model = ModelSuspicion()
    for name in ("a", "a", "a", "b"):
        model.note_death_alone(name)
        assert not model.proven
    model.note_death_alone("c")
    assert model.proven


def test_whatever_a_model_does_in_between_clears_it():
    model = ModelSuspicion()
    for _ in range(5):
        model.note_death_alone("a")
        model.note_death_alone("b")
        model.note_output()
        model.note_death_in_binding()
        model.note_death_in_binding()
        model.note_bound()
        assert not model.proven
    for _ in range(3):
        model.note_death_in_binding()
    assert model.proven
