from __future__ import annotations

import pytest

from launcher.models import ModelSwitch, SwitchInProgress, SwitchState


def loading() -> ModelSwitch:
    models = ModelSwitch("small")
    models.want("large")
    models.draining()
    models.loading()
    return models


def test_nothing_is_said_of_the_model_that_was_configured() -> None:
    assert ModelSwitch("small").arguments == ()


def test_a_switch_ends_with_the_wanted_model() -> None:
    models = loading()
    assert models.arguments == ("--model", "large")
    models.loaded()
    assert (models.served, models.state) == ("large", SwitchState.SERVING)
    assert models.arguments == ("--model", "large")


def test_a_model_that_can_not_be_loaded_leads_back() -> None:
    models = loading()
    models.failed("large needs 80 GB")
    assert models.arguments == ()
    models.loaded()
    assert models.served == "small"
    assert models.document()["reason"] == "large needs 80 GB"
    assert models.document()["state"] == "failed"


def test_the_model_that_is_served_needs_no_switch() -> None:
    models = ModelSwitch("small")
    models.want("small")
    assert not models.due


def test_one_switch_at_a_time() -> None:
    with pytest.raises(SwitchInProgress, match="large"):
        loading().want("medium")


def test_a_wish_may_change_until_it_is_begun() -> None:
    models = ModelSwitch("small")
    models.want("large")
    models.want("medium")
    assert models.due
    assert models.wanted == "medium"


def test_a_model_that_the_configuration_names_anew_waits_for_a_wish() -> None:
    """A restart after a failure goes on with the one whose answers are under way."""
    switch = ModelSwitch("a")
    switch.configured("b")
    assert (switch.served, switch.arguments, switch.due) == ("a", ("--model", "a"), False)
    switch.want_configured()
    assert (switch.wanted, switch.due) == ("b", True)
    switch.loading()
    assert switch.arguments == ()
    switch.loaded()
    switch.want_configured()
    assert (switch.served, switch.due) == ("b", False)


def test_a_model_that_an_operator_chose_outlives_other_changes() -> None:
    switch = ModelSwitch("a")
    switch.want("b")
    switch.loading()
    switch.loaded()
    switch.configured("a")
    switch.want_configured()
    assert (switch.served, switch.due) == ("b", False)
