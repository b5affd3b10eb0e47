"""Which open transactions may be aborted: those of members that died, and no others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlens.broker.recovery import left_open, member_of, transactional_id

NAMES = st.text("abc.-_0", min_size=1, max_size=4)
PROCESS = st.text("0123456789abcdef", min_size=8, max_size=8)


@given(NAMES | st.just("a:b"), NAMES, PROCESS)
def test_a_transactional_id_names_its_member(group: str, member: str, process: str) -> None:
    assert member_of(transactional_id(group, member, process), group) == member


@pytest.mark.parametrize("other", ["g2:m:01234567", "g:m", "m", "g:m:0123456", "gg:m:01234567", "g:dlq-replay", ""])
def test_ids_of_others_name_nobody(other: str) -> None:
    assert member_of(other, "g") is None


@given(st.sets(NAMES, max_size=6), st.sets(NAMES, max_size=6), NAMES, st.data())
def test_nobody_who_lives_is_fenced_and_everybody_else_is(
    living: set[str], dead: set[str], own: str, data: st.DataObject
) -> None:
    living, dead = living | {own}, dead - living - {own}
    own_id = transactional_id("g", own, "00000000")
    process = data.draw(PROCESS)
    ids = [transactional_id("g", member, process) for member in [*(living - {own}), *dead]]
    others = [transactional_id(group, member, process) for group in ("h", "g2") for member in dead]
    found = left_open([*ids, own_id, *others], living, group="g", own_id=own_id)
    assert {member_of(each, "g") for each in found} == dead


def test_a_static_members_predecessor_is_dead_though_its_name_lives() -> None:
    ids = ["g:app-0:11111111", "g:app-0:22222222", "g:app-1:33333333"]
    assert left_open(ids, {"app-0", "app-1"}, group="g", own_id="g:app-0:22222222") == ["g:app-0:11111111"]


def test_who_is_no_member_itself_judges_nobody() -> None:
    assert left_open(["g:a:11111111"], set(), group="g", own_id="g:b:22222222") == []
