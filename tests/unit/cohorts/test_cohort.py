"""Which cohort a trait name stands for."""

from __future__ import annotations

import re

import pytest

from app.cohorts import Cohort


@pytest.mark.parametrize(
    ("trait", "cohort_id"),
    [
        ("[Amplitude] Power users: abc123", "abc123"),
        ("cohort name:123", "123"),
        ("a: b: c:  last ", "last"),
        ('quo"te\\ <b> 🎉: x1', "x1"),
        (":only-id", "only-id"),
        ("line\nbreak: id\t", "id"),
    ],
)
def test_from_trait__text_after_last_colon__is_the_id(trait: str, cohort_id: str) -> None:
    assert Cohort.from_trait(trait) == Cohort(cohort_id, trait)


@pytest.mark.parametrize(
    ("name", "cohort_id", "trait"),
    [
        ("VIPs", "xyz", "[Amplitude] VIPs: xyz"),
        ("VIPs: gold", "xyz", "[Amplitude] VIPs: gold: xyz"),
        ("[Amplitude] VIPs: xyz", "xyz", "[Amplitude] VIPs: xyz"),
        ("cohort name:123", "123", "cohort name:123"),
        ("VIP", "name-986e2890737d7abe583e75e3", "VIP"),
        ("[Amplitude] VIPs: xyz", "abc", "[Amplitude] [Amplitude] VIPs: xyz: abc"),
    ],
)
def test_given__a_name_or_a_whole_trait_name(name: str, cohort_id: str, trait: str) -> None:
    assert Cohort.given(name, cohort_id) == Cohort(cohort_id, trait)


@pytest.mark.parametrize("trait", ["VIP", "VIP:", "VIP:  ", ":", " ", "ünïcödé 🎉"])
def test_from_trait__no_id_in_the_name__derives_a_url_safe_one(trait: str) -> None:
    first, second = Cohort.from_trait(trait), Cohort.from_trait(trait)
    assert first == second
    assert re.fullmatch(r"[A-Za-z0-9-]+", first.id)


def test_from_trait__no_id_in_the_name__derives_the_one_that_is_stored() -> None:
    assert Cohort.from_trait("VIP").id == "name-986e2890737d7abe583e75e3"


def test_from_trait__different_names_without_id__are_different_cohorts() -> None:
    assert len({Cohort.from_trait(t).id for t in ("VIP", "VIP:", "vip", "VIP: ")}) == 4
