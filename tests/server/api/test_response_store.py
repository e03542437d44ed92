"""Stored responses: bounded, each one its owner's, and nobody pushes out what others have."""

from __future__ import annotations

import json

import pytest

from server.api.responses.store import MAX_PARTS, ResponseStore, Stored, UnknownResponse
from server.replay.records import MAX_KEPT


def stored(name: str, text: str = "", owner: str = "me") -> Stored:
    return Stored.of({"id": name, "text": text}, [], [], owner)


def test_the_store_forgets_what_was_used_least_recently() -> None:
    store = ResponseStore(max_responses=2)
    for name in ("a", "b"):
        store.put(stored(name))
    store.get("a", "me")
    store.put(stored("c"))
    with pytest.raises(UnknownResponse):
        store.get("b", "me")
    assert len(store) == 2


def test_the_store_is_bounded_in_bytes() -> None:
    store = ResponseStore(max_bytes=1000)
    for number in range(50):
        store.put(stored(str(number), "x" * 100))
        assert store.bytes <= 1000
    assert 0 < len(store) < 10
    kept = store.bytes
    store.put(stored("large", "x" * 1000))  # alone it exceeds the bound, and pushes out nothing
    assert store.bytes == kept


@pytest.mark.parametrize("at_once", [False, True])
def test_why_a_long_response_is_not_kept_is_told_to_its_owner(at_once: bool) -> None:
    """Whether it was too long for any store, or for this one."""
    long = Stored.of(
        {"id": "long"}, [], [{"content": "x" * (MAX_PARTS if at_once else 1000)}], "me"
    )
    assert (long.parts is None) is at_once
    assert len(long.encoded) <= MAX_KEPT
    store = ResponseStore(max_bytes=1000, max_responses=3)
    store.put(long)
    store.put(stored("other"))
    for ask in (store.get, store.delete):
        with pytest.raises(UnknownResponse, match=f"has {long.size} bytes, and at most 1000"):
            ask("long", "me")
        with pytest.raises(UnknownResponse, match="it was deleted"):
            ask("long", "you")
    assert has(store, "other", "me")
    for number in range(3):  # what is only known of it takes a place as well
        store.put(stored(str(number)))
    assert len(store) == 3


def test_a_stored_response_is_its_owners() -> None:
    store = ResponseStore()
    store.put(stored("a"))
    with pytest.raises(UnknownResponse):
        store.get("a", "you")
    with pytest.raises(UnknownResponse):
        store.delete("a", "you")
    store.put(stored("a", "again"))
    assert json.loads(store.get("a", "me").whole.document) == {"id": "a", "text": "again"}


def has(store: ResponseStore, response_id: str, owner: str) -> bool:
    try:
        store.get(response_id, owner)
    except UnknownResponse:
        return False
    return True


def test_nobody_pushes_out_what_others_have() -> None:
    by_number, by_size = ResponseStore(max_responses=10), ResponseStore(max_bytes=1000)
    for store, text in ((by_number, ""), (by_size, "x" * 100)):
        store.put(stored("mine"))
        for number in range(100):
            store.put(stored(f"greedy-{number}", text, owner="greedy"))
        assert has(store, "mine", "me")
        assert has(store, "greedy-99", "greedy")
        assert not has(store, "greedy-0", "greedy")


def test_who_comes_late_gets_room_from_who_has_most() -> None:
    store = ResponseStore(max_responses=4)
    for number in range(4):
        store.put(stored(f"a{number}", owner="a"))
    for number in range(4):
        store.put(stored(f"b{number}", owner="b"))
    kept = [name for name in ("a0", "a1", "a2", "a3") if has(store, name, "a")]
    assert kept == ["a2", "a3"]
    assert [name for name in ("b0", "b1", "b2", "b3") if has(store, name, "b")] == ["b2", "b3"]


def test_an_empty_store_holds_nothing() -> None:
    store = ResponseStore()
    for owner in ("a", "b"):
        store.put(stored(owner, "text", owner=owner))
        store.delete(owner, owner)
    assert (len(store), store.bytes, store._shelves) == (0, 0, {})
